"""Files that appear whole or not at all, and keys made from content."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verl_ext.text import replacing


def write_atomically(path: Path, content: bytes) -> None:
    """Write under a temporary name, flush, rename; parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        new.write_bytes(content)


def content_key(*parts: Any) -> str:
    """16 hex digits of dataclasses and plain values: equal settings give equal keys in every process."""
    plain = [asdict(part) if hasattr(part, "__dataclass_fields__") else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
