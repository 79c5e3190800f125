"""The model to evaluate: a Hugging Face folder or hub id, or a verl checkpoint, which verl's own merger turns into one."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from verl_ext.evaluation import EvaluationError
from verl_ext.evaluation.lora import ADAPTER, TRAINED_WITH
from verl_ext.files import new_folder
from verl_ext.platform import prepare_environment

MERGED = "merged_model"
ORIGIN = "merged_from.json"  # written last: its presence says that the merged folder is complete
WHOLE = 4 << 20  # bytes up to which a file is hashed whole
BLOCK, BLOCKS = 64 << 10, 64  # of a larger one, so many blocks of so many bytes, evenly spaced
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Model:
    """A model on disk.

    Attributes:
        name: for tables.
        folder: a Hugging Face folder, or a checkpoint's `actor` folder that `merged` turns into one.
        checkpoint: whether it is the latter.
        fingerprint: SHA-256 over names, sizes and (of large files, samples of) contents.
        config: config.json.
        parameters: how many, None if that cannot be told without loading it.
    """

    name: str
    folder: Path
    checkpoint: bool
    fingerprint: str
    config: dict[str, Any]
    parameters: int | None

    @property
    def context(self) -> int | None:
        """Longest prompt with response, in tokens, that the model was made for; None if its config does not say."""
        return (self.config.get("text_config") or self.config).get("max_position_embeddings")

    @property
    def dtype(self) -> str:
        """The dtype its weights will have on disk: verl's merger writes bfloat16."""
        return "bfloat16" if self.checkpoint else self.config.get("dtype") or self.config.get("torch_dtype", "bfloat16")

    @property
    def tokenizer(self) -> Path:
        """The folder that holds the tokenizer."""
        return self.folder / "huggingface" if self.checkpoint else self.folder


def find_model(spec: str) -> Model:
    """The model that `--model` names. Raises EvaluationError if it names none."""
    path = Path(spec)
    if (path / "actor" / "huggingface" / "config.json").is_file():
        return _checkpoint(path)
    if (path / ADAPTER).is_dir():
        raise EvaluationError(
            f"--model {spec}: verl's merger left the LoRA adapter beside the base model there; name the checkpoint "
            f"(global_step_N) instead, or run python -m verl_ext.evaluation.lora {spec} first"
        )
    if (path / "config.json").is_file():
        return _model(path.resolve().name, path, _files(path), _safetensors_parameters(path))
    if path.exists() or spec.startswith((".", "/", "~")) or spec.count("/") != 1:
        raise EvaluationError(f"--model {spec}: neither a Hugging Face folder nor a checkpoint global_step_N")
    folder = _from_hub(spec)
    return _model(spec, folder, _files(folder), _safetensors_parameters(folder))


def merged(model: Model, out: Path) -> Path:
    """A Hugging Face folder of the model; a checkpoint is merged into `out` once. Raises EvaluationError if verl fails."""
    if not model.checkpoint:
        return model.folder
    target = out / MERGED
    origin = {"actor": str(model.folder.resolve()), "fingerprint": model.fingerprint}
    if (target / ORIGIN).is_file() and json.loads((target / ORIGIN).read_text()) == origin:
        return target
    for old in (target, *out.glob(f".{MERGED}.*")):  # hidden: what a kill left
        shutil.rmtree(old, ignore_errors=True)
    with new_folder(target) as new:
        _merge(model.folder, new, out / "merge.log")
        (new / ORIGIN).write_text(json.dumps(origin))
    return target


def _merge(checkpoint: Path, target: Path, log: Path) -> None:
    """verl's merger and, where the checkpoint is a LoRA's, the adapter into the base model."""
    merge = [
        "verl.model_merger",
        "merge",
        "--backend",
        "fsdp",
        "--local_dir",
        str(checkpoint),
        "--target_dir",
        str(target),
    ]
    _call(merge, log, f"{checkpoint}: verl's model merger")
    if (target / ADAPTER).is_dir():
        _call(
            ["verl_ext.evaluation.lora", str(target)], log, f"{checkpoint}: adding the LoRA adapter to its base model"
        )


def _call(module: list[str], log: Path, what: str) -> None:
    """Run `python -m module...`, its output at the end of `log`. Raises EvaluationError if it fails."""
    environment = os.environ.copy()
    prepare_environment(environment)
    with log.open("ab") as output:
        command = [sys.executable, "-m", *module]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    if done.returncode != 0:
        last = log.read_text(errors="replace").strip().rpartition("\n")[2]
        raise EvaluationError(f"{what} failed with exit code {done.returncode}, see {log}: {last}")


def fingerprint(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 over the files' names, sizes and contents; of a file above WHOLE bytes, BLOCKS samples of its content.

    Training changes every weight, so the samples tell two models apart without reading gigabytes.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(json.dumps([str(file.relative_to(folder)), size]).encode())
        with open(file, "rb") as stream:
            for start in range(0, size, BLOCK) if size <= WHOLE else _spread(size):
                stream.seek(start)
                digest.update(stream.read(BLOCK))
    return digest.hexdigest()


def _spread(size: int) -> Iterator[int]:
    return (round(i * (size - BLOCK) / (BLOCKS - 1)) for i in range(BLOCKS))


def _checkpoint(step: Path) -> Model:
    actor = step / "actor"
    shards = sorted(actor.glob("model_world_size_*.pt"))
    if not shards:
        raise EvaluationError(f"{actor}: no FSDP weights (model_world_size_*.pt) are there")
    files = [*shards, *actor.glob(TRAINED_WITH), *_files(actor / "huggingface")]
    parameters = sum(shard.stat().st_size for shard in shards) // FLOAT32_BYTES
    return _model("/".join(step.resolve().parts[-2:]), actor, files, parameters, checkpoint=True)


def _model(name: str, folder: Path, files: list[Path], parameters: int | None, checkpoint: bool = False) -> Model:
    config = (folder / "huggingface" if checkpoint else folder) / "config.json"
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        raise EvaluationError(f"{config}: not JSON") from None
    return Model(name, folder, checkpoint, fingerprint(folder, files), content, parameters)


def _files(folder: Path) -> list[Path]:
    """Everything in a model folder that may change what it generates."""
    kinds = (".json", ".jinja", ".safetensors", ".bin", ".txt", ".model", ".tiktoken")
    return sorted(f for f in folder.iterdir() if f.suffix in kinds and f.is_file() and f.name != ORIGIN)


def _safetensors_parameters(folder: Path) -> int | None:
    """Elements in all safetensors files, of which only headers are read; None without such files, or with a damaged one."""
    count = 0
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "numpy") as tensors:
                count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except SafetensorError:
            return None
    return count or None


def _from_hub(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=["*.json", "*.jinja", "*.safetensors", "*.txt", "*.model"])
        )
    except Exception as error:  # noqa: BLE001 - network, names, permissions: all end in the same sentence
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EvaluationError(f"--model {hub_id}: no such folder, and not to be had from the hub ({reason})") from None
