"""A continuous reward for TINY=1: how close the answer's digits come to the gold answer. It stands in for a reward model."""

import difflib
from typing import Any


def compute_score(data_source: str, solution_str: str, ground_truth: str, **_: Any) -> float:
    """Similarity in [0, 1] of the response's tail and the gold answer."""
    tail = solution_str.strip()[-2 * len(str(ground_truth)) - 4 :]
    return difflib.SequenceMatcher(None, tail, str(ground_truth)).ratio()
