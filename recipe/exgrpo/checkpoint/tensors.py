"""Checked safetensors files: written durably with their SHA-256, read back without a copy, executing nothing.

The safetensors library can read what is written here and the other way round (the tests do both). It is not used on this
path because it copies every tensor twice, where a buffer of gigabytes should go from memory to disk and back once.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from verl_ext.files import FileRecord, write_durably

DTYPES = {
    "I64": "<i8", "U64": "<u8", "F64": "<f8", "I32": "<i4", "F32": "<f4", "I16": "<i2", "F16": "<f2", "U8": "|u1",
}  # fmt: skip
NAMES = {np.dtype(code).str: name for name, code in DTYPES.items()}


class ExperienceStateError(Exception):
    """Experience state cannot be written or used; `file` is the path concerned and `reason` a sentence."""

    def __init__(self, file: str | Path, reason: str):
        super().__init__(f"{file}: {reason}")
        self.file, self.reason = Path(file), reason

    def __reduce__(self):
        return type(self), (self.file, self.reason)


class MissingState(ExperienceStateError):
    """A folder or file is not there."""


class CorruptState(ExperienceStateError):
    """A file is truncated, altered, or contradicts the rest."""


class ForeignState(ExperienceStateError):
    """Not experience state of this project."""


class NewerState(ExperienceStateError):
    """Written by a later version of this project."""


class MismatchedState(ExperienceStateError):
    """Intact, but made with another model, tokenizer or group size."""


class UnsavedState(ExperienceStateError):
    """Saving failed; what was saved before is untouched."""


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray | list[np.ndarray]], about: str) -> FileRecord:
    """Write one-dimensional arrays (or lists of pieces of one) as a new safetensors file, and flush it to the disk."""
    pieces = {name: [tensor] if isinstance(tensor, np.ndarray) else tensor for name, tensor in tensors.items()}
    # Widest elements first, as the library does, so that every tensor is aligned to its element size.
    names = sorted(pieces, key=lambda name: -pieces[name][0].itemsize)
    header, at = {"__metadata__": {"about": about}}, 0
    for name in names:
        length = sum(map(len, pieces[name]))
        dtype = pieces[name][0].dtype
        header[name] = {
            "dtype": NAMES[dtype.str],
            "shape": [length],
            "data_offsets": [at, at + length * dtype.itemsize],
        }
        at += length * dtype.itemsize
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    parts = (np.ascontiguousarray(piece) for name in names for piece in pieces[name])
    return write_durably(path, [len(encoded).to_bytes(8, "little"), encoded], parts)


def read_tensors(path: Path, record: FileRecord, verify: bool = True) -> dict[str, np.ndarray]:
    """The arrays of a file, as views of one block of memory.

    With `verify` the file is read and its checksum compared; without it is mapped, and only its size is checked. Raises
    MissingState or CorruptState.
    """
    data = read_checked(path, record) if verify else _mapped(path, record)
    try:
        end = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8:end].tobytes())
        return {name: _view(data[end:], entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptState(path, f"not a readable safetensors file ({error}).") from error


def read_checked(path: Path, record: FileRecord) -> np.ndarray:
    """The file's bytes, uint8; raises MissingState, or CorruptState when size or checksum differ from `record`."""
    _check_size(path, record)
    data = path.read_bytes()
    if len(data) != record.bytes or hashlib.sha256(data).hexdigest() != record.sha256:
        raise CorruptState(path, "its SHA-256 is not the one in the manifest.")
    return np.frombuffer(data, np.uint8)


def _check_size(path: Path, record: FileRecord) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise MissingState(path, f"the manifest lists it but it cannot be opened ({error.strerror}).") from error
    if size != record.bytes:
        raise CorruptState(path, f"it has {size} bytes and the manifest says {record.bytes}.")


def _mapped(path: Path, record: FileRecord) -> np.ndarray:
    _check_size(path, record)
    return np.asarray(np.memmap(path, np.uint8, mode="r"))


def _view(data: np.ndarray, entry: dict) -> np.ndarray:
    start, stop = entry["data_offsets"]
    view = data[start:stop].view(DTYPES[entry["dtype"]])
    if [len(view)] != entry["shape"]:
        raise ValueError(f"a tensor of shape {entry['shape']} has {len(view)} elements")
    return view
