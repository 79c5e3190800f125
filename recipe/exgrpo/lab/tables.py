"""Finished cells as parquet: learning curves, training metrics, and wall times (apart, for they differ from run to run)."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recipe.exgrpo.lab.files import write_atomically

RESULTS, TRAINING, TIMINGS = "results.parquet", "training.parquet", "timings.parquet"


def write_tables(results: Sequence[dict], out: Path) -> list[Path]:
    """Write the three tables of `results` (as `run_cell` returns them); the first two depend on nothing but the seeds.

    `results.parquet` has a row an evaluation (held-out `pass_rate` and the costs so far), `training.parquet` a row a step.
    """
    ordered = sorted(results, key=lambda result: tuple(result["cell"].values()))
    curve = [result["cell"] | point for result in ordered for point in result["curve"]]
    tables = {
        RESULTS: [{name: value for name, value in row.items() if name != "seconds"} for row in curve],
        TRAINING: [result["cell"] | point for result in ordered for point in result["training"]],
        TIMINGS: [
            result["cell"] | {"step": p["step"], "seconds": p["seconds"]} for result in ordered for p in result["curve"]
        ],
    }
    return [_write(rows, out / name) for name, rows in tables.items()]


def read_table(path: Path) -> list[dict]:
    """Rows of a parquet file; FileNotFoundError saying what makes it."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; `exgrpo lab run` writes it when its cells are done.")
    return pq.read_table(path).to_pylist()


def _write(rows: Iterable[dict], path: Path) -> Path:
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), content, compression="zstd")
    write_atomically(path, content.getvalue())
    return path
