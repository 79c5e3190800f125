"""Writes a parquet file and its manifest: same rows, same bytes; under temporary names first."""

import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DataError
from data.sources import sha256_of

VERSIONS = ("pyarrow", "math-verify", "sympy")


def write_dataset(rows: Sequence[dict[str, Any]], path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write `path` and `<stem>.manifest.json` beside it; returns the manifest, completed with the file's SHA-256.

    The manifest goes last: a parquet file with a manifest is complete. Raises DataError if nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        manifest_path = path.with_suffix(".manifest.json")
        manifest_path.unlink(missing_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            pq.write_table(pa.Table.from_pylist(list(rows)), partial, compression="zstd")
            manifest |= {"file": path.name, "rows": len(rows), "sha256": sha256_of(partial)}
            manifest["versions"] = {package: version(package) for package in VERSIONS}
            _publish(partial, path)
            partial.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            _publish(partial, manifest_path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
    return manifest


def _publish(partial: Path, path: Path) -> None:
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(partial, path)
