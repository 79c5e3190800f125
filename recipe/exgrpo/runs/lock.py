"""One process at a time in a run folder: a lock for the run's life, with a record that a person can read.

The kernel's lock on `run.lock` decides between processes of one machine and goes with its owner, however that ended. It does
not reach other machines on every shared file system, so the owner also touches the file every few seconds: a record of
another machine counts only while that goes on.
"""

import fcntl
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger(__name__)

NAME = "run.lock"
BEAT_S = 5.0
WATCH_S = 20.0


class LockedError(RuntimeError):
    """Another process runs in the folder; the message says which, where and since when."""


@contextmanager
def hold(folder: str | Path, beat_s: float = BEAT_S, watch_s: float = WATCH_S) -> Iterator[None]:
    """Hold the lock of a run folder, which is made if it does not exist.

    The record of another machine is watched for `watch_s` seconds: one that is touched meanwhile is alive.

    Raises LockedError, or OSError when the folder cannot be written.
    """
    path = Path(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        locked = _take(file, path)
        _refuse_living(file, path, watch_s, locked)
        _write(
            file, {"host": platform.node(), "pid": os.getpid(), "since": datetime.now(UTC).isoformat(" ", "seconds")}
        )
        with _beating(path, beat_s):
            try:
                yield
            finally:
                _write(file, {})


def holder(folder: str | Path) -> str | None:
    """Who holds the lock of a run folder, as a sentence; None when nobody on this machine does, or this process."""
    path = Path(folder) / NAME
    if not path.is_file() or not os.access(path, os.R_OK):
        return None
    with open(path, encoding="utf-8") as file:
        record = _read(file)
        if record.get("pid") == os.getpid() and record.get("host") == platform.node():
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _sentence(path, record)
        except OSError:
            return None
    return None


def _take(file: IO[str], path: Path) -> bool:
    """Take the kernel's lock; False on a file system that has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        raise LockedError(_sentence(path, _read(file))) from None
    except OSError as error:  # file systems without locks: what is left is the record
        logger.warning("%s cannot be locked (%s); only its record guards the folder", path, error.strerror)
        return False


def _refuse_living(file: IO[str], path: Path, watch_s: float, locked: bool) -> None:
    """What an earlier owner left behind: a dead process of this machine, or another machine, dead or alive."""
    record = _read(file)
    if not record:
        return
    owner = f"process {record.get('pid')} on {record.get('host')}, since {record.get('since')}"
    if record.get("host") != platform.node() or not locked:
        logger.warning("%s: the last run here was %s; watching for %g s whether it lives", path, owner, watch_s)
        before = _touched(path)
        time.sleep(watch_s)
        if _touched(path) != before:
            raise LockedError(_sentence(path, record))
    logger.warning("%s: %s did not end in order; its lock is taken over", path, owner)


def _sentence(path: Path, record: dict[str, Any]) -> str:
    return (
        f"trainer.default_local_dir: {path.parent} is in use by process {record.get('pid', 'unknown')} on "
        f"{record.get('host', 'an unknown host')}, since {record.get('since', 'an unknown time')}; wait for it, end it, or set "
        "RUN to another folder."
    )


def _read(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        record = json.loads(file.read() or "{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _write(file: IO[str], record: dict[str, Any]) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(record) + "\n" if record else "")
    file.flush()


@contextmanager
def _beating(path: Path, beat_s: float) -> Iterator[None]:
    done = threading.Event()

    def beat() -> None:
        while not done.wait(beat_s):
            try:
                os.utime(path)
            except OSError as error:  # a file system that is away for a moment must not end a run
                logger.warning("%s: %s", path, error)

    thread = threading.Thread(target=beat, name="run lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _touched(path: Path) -> int:
    """When the file was touched last, in ns by the file system's clock; opened anew, so that network caches are asked."""
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns
