"""The paper's results, read from recipe/exgrpo/presets/paper_results.json: the one place where they are written down."""

import json
from functools import lru_cache
from importlib.resources import files
from typing import Any


@lru_cache
def paper_results() -> dict[str, Any]:
    """`titles` of benchmarks, `groups` that are averaged, `backbones` with a row for each method, in percent."""
    return json.loads(files("recipe.exgrpo.presets").joinpath("paper_results.json").read_text(encoding="utf-8"))


def guess_backbone(model: str) -> str | None:
    """The backbone whose name is in a model's path or hub id, the longest one; None if there is none."""
    found = [name for name in paper_results()["backbones"] if name in model.lower()]
    return max(found, key=len, default=None)
