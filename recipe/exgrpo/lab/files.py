"""Keys made from content."""

import hashlib
import json
from dataclasses import asdict
from typing import Any


def content_key(*parts: Any) -> str:
    """16 hex digits of dataclasses and plain values: equal settings give equal keys in every process."""
    plain = [asdict(part) if hasattr(part, "__dataclass_fields__") else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
