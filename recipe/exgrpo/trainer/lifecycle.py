"""What surrounds the steps of a run: the data it goes on with, saving on a disk that may be full, engines that may be dead."""

import errno
import json
import logging
import resource
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from omegaconf import DictConfig

from recipe.exgrpo.runs.folder import Checkpoint, newest_whole, prune, remove_checkpoint
from verl_ext.dataset import paths_of
from verl_ext.files import sha256_of, write_atomically

logger = logging.getLogger(__name__)

DATA = "data.json"
HEALTH_S = 5.0
# What a full disk or quota sounds like; torch's writer says where its file ended, not why.
FULL = ("no space left", "disk quota", "unexpected pos", "iostream error", "writing failed")


class SaveError(RuntimeError):
    """A checkpoint was not saved; the message says where and what is missing."""


class DataError(ValueError):
    """The training data do not do for this run; the message names the key."""


# ---- the training data that a run goes on with


def enough_questions(config: DictConfig, questions: int) -> None:
    """Raise DataError when fewer `questions` are left than a step takes: verl would divide by its steps per epoch, 0."""
    if questions < config.data.train_batch_size:
        raise DataError(
            f"data.train_batch_size is {config.data.train_batch_size} but data.train_files have {questions} questions left "
            f"(prompts over data.max_prompt_length={config.data.max_prompt_length} are left out); lower it, or add questions."
        )


def data_state(config: DictConfig, rows: int) -> dict:
    """What a position in the training data is a position in: contents of the files, and the rows left after filtering."""
    return {"sha256": [sha256_of(Path(path)) for path in paths_of(config, "train_files")], "rows": rows}


def write_data_state(folder: Path, state: dict) -> None:
    """Put it beside verl's `data.pt`."""
    write_atomically(folder / DATA, json.dumps(state) + "\n")


def same_data(folder: Path, state: dict) -> bool:
    """Whether the checkpoint in `folder` stands in the same data. Without a record of them, it is taken to."""
    path = folder / DATA
    if not path.is_file():
        return True
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved != state:
        logger.warning(
            "data.train_files changed since %s was saved (%d rows then, %d now): the new data start at their beginning",
            folder,
            saved["rows"],
            state["rows"],
        )
    return saved == state


# ---- saving


def save_checkpoint(root: Path, step: int, keep: int | None, save: Callable[[], None]) -> None:
    """Let `save` write `global_step_<step>`, then remove what is too many (`keep` checkpoints; None or 0: all).

    Raises SaveError when the disk is full, after removing what was written of this checkpoint; other errors as they are.
    """
    folder, before = root / f"global_step_{step}", newest_whole(root)
    try:
        save()
    except Exception as error:
        if _disk_is_full(error):
            raise SaveError(_full(folder, before)) from error
        raise
    if keep:
        for path in prune(root, keep, step):
            logger.info("%s removed: trainer.max_actor_ckpt_to_keep=%d", path, keep)


def _disk_is_full(error: BaseException) -> bool:
    inner: BaseException | None = error
    while inner is not None:
        if getattr(inner, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(words in str(inner).lower() for words in FULL):
            return True
        inner = getattr(inner, "cause", None) or inner.__cause__
    return False


def _full(folder: Path, before: Checkpoint | None) -> str:
    """The sentence about a full disk; what was written is removed, which makes room for the next attempt."""
    torn, free = Checkpoint(folder).bytes, shutil.disk_usage(folder.parent).free
    needed = f"{before.bytes:,}" if before else f"more than {torn:,}"
    reason = _reason(free, before.bytes if before else torn)
    remove_checkpoint(folder)
    newest = f"the newest whole checkpoint is {before.path}" if before else "there is no earlier checkpoint"
    return (
        f"{folder} was not saved, {reason}: {needed} bytes are needed, {free:,} were free with {torn:,} of it written; "
        f"the incomplete folder is removed, {newest}. Make room, or set trainer.max_actor_ckpt_to_keep=1."
    )


def _reason(free: int, needed: int) -> str:
    """torch's writer says the same of a full disk and of a file that may not grow any more."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and needed <= free:
        return f"no file may have more than {limit:,} bytes here (ulimit -f)"
    return "its disk is full"


# ---- engines


def dead_engine(addresses: Sequence[str]) -> str | None:
    """A sentence about the first vLLM server (host:port) whose engine is dead; None when all live or are only busy."""
    return next(
        (f"vLLM's engine at {address} is dead ({why})" for address in addresses if (why := _illness(address))), None
    )


def _illness(address: str) -> str | None:
    try:
        with urlopen(f"http://{address}/health", timeout=HEALTH_S):
            return None
    except HTTPError as error:
        return "EngineDeadError" if error.code == 503 else None
    except URLError as error:
        return "EngineDeadError: its server is gone" if isinstance(error.reason, ConnectionRefusedError) else None
    except OSError:  # no answer in time, as from a busy server
        return None
