"""Files and folders that appear whole or not at all, and are on the disk once they have appeared."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of a file: what a manifest keeps of it."""

    bytes: int
    sha256: str

    def as_dict(self) -> dict:
        return asdict(self)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write; flushed to the disk, it takes `path`'s place once the block is left without an exception."""
    new = _temporary(path)
    try:
        yield new
        move_durably(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; flushed to the disk, it becomes `path` once the block is left without an exception.

    Parent folders are made. Raises OSError if `path` then exists and is not an empty folder.
    """
    new = _temporary(path)
    new.mkdir(parents=True)
    try:
        yield new
        for found in new.rglob("*"):
            if not found.is_symlink():
                _sync(found)
        move_durably(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def move_durably(new: Path, path: Path) -> None:
    """Flush a file or a folder's entries to the disk, then give it the name `path`, and flush that."""
    _sync(new)
    os.replace(new, path)
    sync_folder(path.parent)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file (text as UTF-8) in place of `path`; parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        new.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_durably(path: Path, *parts: Iterable[Any]) -> FileRecord:
    """Write a new file and flush it to the disk; its name is not flushed (`sync_folder`).

    Args:
        parts: bytes and C-contiguous arrays, in iterables that are read one after another.
    """
    digest = hashlib.sha256()
    with open(path, "xb", buffering=1 << 20) as file:
        for part in (memoryview(part) for some in parts for part in some):
            if part.nbytes:  # a memoryview without elements cannot be cast
                digest.update(part.cast("B"))
                file.write(part.cast("B"))
        file.flush()
        os.fsync(file.fileno())
        return FileRecord(file.tell(), digest.hexdigest())


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk."""
    _sync(path)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def numbered(folder: Path, prefix: str, suffix: str = "") -> list[Path]:
    """What is called `<prefix>NNN<suffix>` in a folder, by number."""
    form = re.compile(rf"{re.escape(prefix)}(\d+){re.escape(suffix)}")
    found = {path: match for path in folder.glob("*") if (match := form.fullmatch(path.name))}
    return sorted(found, key=lambda path: int(found[path][1]))


def next_numbered(folder: Path, prefix: str, suffix: str = "") -> Path:
    """A name after the last of these: the number of one that was removed would be another's."""
    taken = numbered(folder, prefix, suffix)
    last = int(taken[-1].name[len(prefix) : len(taken[-1].name) - len(suffix)]) if taken else -1
    return folder / f"{prefix}{last + 1:03d}{suffix}"


def keep_copy(path: Path) -> Path:
    """Copy a file that is about to lose something to `<stem>.before-NNN<suffix>` beside it; returns the copy."""
    copy = next_numbered(path.parent, f"{path.stem}.before-", path.suffix)
    write_atomically(copy, path.read_bytes())
    return copy


def _temporary(path: Path) -> Path:
    """A name beside `path`, of this process only."""
    return path.with_name(f".{path.name}.{os.getpid()}.new")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
