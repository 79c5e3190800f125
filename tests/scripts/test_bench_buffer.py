"""The buffer benchmark runs at small size and ends with the promised line of JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "insert_per_s", "insert_prompted_per_s", "plan_ms_1k", "plan_ms_46k", "plan_ms_1m", "memory_over_payload",
    "incremental_time_ratio", "incremental_bytes_ratio", "load_over_read",
}  # fmt: skip


@pytest.mark.long
def test_small_benchmark_prints_its_figures(tmp_path):
    command = [sys.executable, ROOT / "scripts/bench_buffer.py", "--size", "small", "--json", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == KEYS | {"baseline"}
    assert set(found["baseline"]) == KEYS
    assert all(value > 0 for values in (found, found["baseline"]) for key, value in values.items() if key != "baseline")
    # Counts, not times: what holds on a busy machine too.
    assert found["memory_over_payload"] < 1.25
    assert found["incremental_bytes_ratio"] < 0.2
    assert found["baseline"]["incremental_bytes_ratio"] > 0.9
    assert list(tmp_path.iterdir()) == []
