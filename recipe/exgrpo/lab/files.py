"""Files that appear whole or not at all, and keys made from content."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verl_ext.tensor_file import sync_folder, write_durably


def write_atomically(path: Path, content: bytes) -> None:
    """Write under a temporary name, flush, rename; parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)
        write_durably(partial, [content])
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def content_key(*parts: Any) -> str:
    """16 hex digits of dataclasses and plain values: equal settings give equal keys in every process."""
    plain = [asdict(part) if hasattr(part, "__dataclass_fields__") else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
