"""Writes a parquet file and its manifest: same rows, same bytes."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DataError
from data.records import Record
from verl_ext.files import replacing, sha256_of, write_atomically

VERSIONS = ("pyarrow", "math-verify", "sympy")


def write_traces(records: Sequence[Record], path: Path, source: str) -> int:
    """Write the written solutions of `records` as parquet, for `exgrpo.experience.init_from`; returns how many there are.

    Raises DataError if there is none, or nothing can be written there.
    """
    rows = [{"question_id": r.question_id, "response": r.trace, "source": source} for r in records if r.trace]
    if not rows:
        raise DataError(f"{path}: none of the {len(records)} questions has a written solution")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            pq.write_table(pa.Table.from_pylist(rows), new, compression="zstd")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
    return len(rows)


def write_dataset(rows: Sequence[dict[str, Any]], path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write `path` and `<stem>.manifest.json` beside it; returns the manifest, completed with the file's SHA-256.

    The manifest goes last: a parquet file with a manifest is complete. Raises DataError if nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        manifest_path = path.with_suffix(".manifest.json")
        manifest_path.unlink(missing_ok=True)
        with replacing(path) as new:
            pq.write_table(pa.Table.from_pylist(list(rows)), new, compression="zstd")
        manifest |= {"file": path.name, "rows": len(rows), "sha256": sha256_of(path)}
        manifest["versions"] = {package: version(package) for package in VERSIONS}
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        escaped = text.encode(
            errors="backslashreplace"
        ).decode()  # bytes of a path that are no characters, as JSON has them
        write_atomically(manifest_path, escaped + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
    return manifest
