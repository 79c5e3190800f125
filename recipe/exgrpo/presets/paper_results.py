"""The paper's results, read from paper_results.json beside this file: the one place where they are written down."""

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")


def paper_results() -> dict[str, Any]:
    """`titles` of benchmarks, `groups` that are averaged, `backbones` with a row for each method, in percent."""
    return json.loads(FILE.read_text(encoding="utf-8"))
