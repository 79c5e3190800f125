"""Finished cells as parquet: learning curves, training metrics, and wall times (separate: they are not reproducible)."""

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from verl_ext.files import write_atomically

RESULTS, TRAINING, TIMINGS = "results.parquet", "training.parquet", "timings.parquet"
CELL = ["family", "base", "base_seed", "seed", "variant"]


def write_tables(results: Sequence[dict], out: Path) -> list[Path]:
    """Write the three tables of `results` (as `run_cell` returns them); the first two depend only on the seeds.

    `results.parquet` has one row per evaluation (held-out `pass_rate` and the costs so far), `timings.parquet` the `seconds`
    so far, `training.parquet` one row per step with all of its metrics.
    """
    ordered = sorted(results, key=lambda result: [result["cell"][name] for name in CELL])
    curves = pd.DataFrame([result["cell"] | point for result in ordered for point in result["curve"]])
    training = pd.DataFrame([result["cell"] | point for result in ordered for point in result["training"]])
    tables = {
        RESULTS: curves.drop(columns="seconds"),
        TRAINING: training,
        TIMINGS: curves[[*CELL, "step", "seconds"]],
    }
    return [_write(table, out / name) for name, table in tables.items()]


def read_table(path: Path) -> pd.DataFrame:
    """A parquet file; FileNotFoundError saying what makes it."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; `exgrpo lab run` writes it when its cells are done.")
    return pd.read_parquet(path)


def _write(table: pd.DataFrame, path: Path) -> Path:
    content = io.BytesIO()
    table.to_parquet(content, compression="zstd", index=False)
    write_atomically(path, content.getvalue())
    return path
