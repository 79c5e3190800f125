"""Checked safetensors files: written durably with their SHA-256, read back as numpy arrays, executing nothing."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from recipe.exgrpo.checkpoint.errors import CorruptState, MissingState
from verl_ext.files import FileRecord, sha256_of, write_durably

DTYPES = {
    "I64": "<i8", "U64": "<u8", "F64": "<f8", "I32": "<i4", "F32": "<f4", "I16": "<i2", "F16": "<f2", "U8": "|u1",
}  # fmt: skip
NAMES = {np.dtype(code).str: name for name, code in DTYPES.items()}


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray | list[np.ndarray]], about: str) -> FileRecord:
    """Write one-dimensional arrays (or lists of pieces of one) as a new safetensors file, and flush it to the disk.

    The library's own `save_file` takes whole tensors and copies each into bytes; the pieces here are views of the buffer's
    memory, gigabytes at the paper's size, that go to the disk and through SHA-256 once.
    """
    pieces = {name: [tensor] if isinstance(tensor, np.ndarray) else tensor for name, tensor in tensors.items()}
    # Widest elements first, as the library does, so that every tensor is aligned to its element size.
    names = sorted(pieces, key=lambda name: -pieces[name][0].itemsize)
    header, at = {"__metadata__": {"about": about}}, 0
    for name in names:
        dtype, length = pieces[name][0].dtype, sum(map(len, pieces[name]))
        end = at + length * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype.str], "shape": [length], "data_offsets": [at, end]}
        at = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    arrays = (np.ascontiguousarray(piece) for name in names for piece in pieces[name])
    return write_durably(path, [len(encoded).to_bytes(8, "little"), encoded], arrays)


def read_tensors(path: Path, record: FileRecord, verify: bool = True) -> dict[str, np.ndarray]:
    """The arrays of a file; raises MissingState or CorruptState.

    Without `verify` only the file's size is compared with `record`, not its SHA-256.
    """
    check_file(path, record, verify)
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptState(path, f"not a readable safetensors file ({error}).") from error


def check_file(path: Path, record: FileRecord, verify: bool = True) -> None:
    """Raises MissingState, or CorruptState when the file's size or (with `verify`) its SHA-256 is not that of `record`."""
    try:
        size = path.stat().st_size
        digest = sha256_of(path) if verify and size == record.bytes else record.sha256
    except OSError as error:
        raise MissingState(path, f"the manifest lists it but it cannot be opened ({error.strerror}).") from error
    if size != record.bytes:
        raise CorruptState(path, f"it has {size} bytes and the manifest says {record.bytes}.")
    if digest != record.sha256:
        raise CorruptState(path, "its SHA-256 is not the one in the manifest.")
