"""Means of the reward's fields over a batch, for the training log (validation gets them from verl)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

FIELDS = ("acc", "format_ok", "truncated", "timeout", "error", "precheck")


def reward_metrics(infos: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """`reward/<field>/mean` over `extra_fields["reward_extra_info"]` of the given rows.

    Pass fresh rows only. A row or field without a number is left out of that field's mean; no row at all gives {}.
    """
    values: dict[str, list[float]] = {field: [] for field in FIELDS}
    for info in infos:
        for field in FIELDS:
            if isinstance(info.get(field), int | float):
                values[field].append(float(info[field]))
    return {f"reward/{field}/mean": sum(numbers) / len(numbers) for field, numbers in values.items() if numbers}
