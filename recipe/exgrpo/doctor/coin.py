"""The reward of models with random weights: a coin that the response decides. They solve nothing, and then nothing is stored or
replayed; with a coin of one half nearly every group is partly solved."""

import zlib
from typing import Any


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any) -> float:
    """1.0 or 0.0, a function of the response's text alone; the signature is that of verl's custom rewards."""
    return float(zlib.crc32(solution_str.encode()) & 1)
