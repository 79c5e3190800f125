"""Published results to show beside one's own: a value that the caller hands in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """A method's scores by benchmark and averages by group, in percent."""

    method: str
    scores: Mapping[str, float]
    averages: Mapping[str, float]


@dataclass(frozen=True)
class Backbone:
    """The rows of one starting model, whose name in tables is `title`."""

    title: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Published:
    """Published results; the default is none.

    Attributes:
        titles: benchmark -> its name in tables.
        groups: group -> the benchmarks that are averaged.
        backbones: name, as it stands in model paths -> results.
    """

    titles: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    backbones: Mapping[str, Backbone] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Published":
        """From plain values: `titles`, `groups`, and `backbones` with a `title` and `rows` of method, scores, averages."""
        backbones = {
            name: Backbone(found["title"], [Row(**row) for row in found["rows"]])
            for name, found in values["backbones"].items()
        }
        return cls(values["titles"], values["groups"], backbones)

    def title(self, benchmark: str) -> str:
        """The benchmark's name in tables."""
        return self.titles.get(benchmark, benchmark)

    def complete_groups(self, benchmarks: Mapping[str, Any]) -> list[str]:
        """The groups of which all benchmarks are there."""
        return [group for group, names in self.groups.items() if set(names) <= benchmarks.keys()]

    def guess_backbone(self, model: str) -> str | None:
        """The backbone whose name is in a model's path or hub id, the longest one; None if there is none."""
        return max((name for name in self.backbones if name in model.lower()), key=len, default=None)
