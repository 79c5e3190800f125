"""What a study registers before its runs: stages, hypotheses and the rule, read from one YAML file."""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from recipe.exgrpo.lab.grid import Axes, Cell
from recipe.exgrpo.lab.rates import BestRates, label, labels
from recipe.exgrpo.lab.suites import REFERENCE, suite

EXPECTED = ("above", "below", "not_below")
CORRECTIONS = ("none", "holm")


@dataclass(frozen=True)
class Stage:
    """One grid: variants (a suite or names by commas) x families x bases x base seeds x seeds.

    `where` names the settings one by one, `[family, base]` each, in place of all bases of all families.
    `settings` are the fields of `LabSettings` and `recipe` those of `BaseRecipe` that differ from the defaults. `rates` are
    multiples of the family's learning rate, at each of which every variant runs; with `tuned_on`, the name of such a stage,
    each variant runs at the rate that did best there, chosen for each setting. `equal` are costs (columns of the results) at
    equal amounts of which the variants are compared as well.
    """

    suite: str
    base_seeds: list[int]
    seeds: list[int]
    families: list[str] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)
    where: list[list[str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    rates: list[float] = field(default_factory=lambda: [1.0])
    tuned_on: str | None = None
    equal: list[str] = field(default_factory=list)

    @property
    def variants(self) -> list[str]:
        """Names as they stand in the stage's tables: labels where it runs several rates."""
        return labels(suite(self.suite), self.rates)

    @property
    def settings_compared(self) -> list[tuple[str, str]]:
        return [(family, base) for family, base in self.where] or list(product(self.families, self.bases))

    @property
    def runs(self) -> int:
        """Planned runs per variant and setting."""
        return len(self.base_seeds) * len(self.seeds)

    def cells(self, best: BestRates | None = None) -> list[Cell]:
        """All cells, those of one seed together; `best` are the rates found on `tuned_on`."""
        found = []
        for family, base in self.settings_compared:
            tuned = (
                [label(variant, best[(family, base), variant]) for variant in self.variants] if best else self.variants
            )
            found += Axes(tuned, [family], [base], self.base_seeds, self.seeds).cells()
        return sorted(found, key=lambda cell: (self.seeds.index(cell.seed), self.base_seeds.index(cell.base_seed)))


@dataclass(frozen=True)
class Hypothesis:
    """`variant` ends `above`, `below` or `not_below` the reference `against`, in each of `bases` (all of its stage when empty).

    The claim is about final held-out pass@1; `not_below` allows for `margin`. A `pooled` one is one claim about the mean of the
    differences over all settings of its stage.
    """

    id: str
    claim: str
    stage: str
    variant: str
    expect: str
    against: str = REFERENCE
    bases: list[str] = field(default_factory=list)
    margin: float = 0.01
    pooled: bool = False

    def __post_init__(self) -> None:
        if self.expect not in EXPECTED:
            raise ValueError(f"hypothesis {self.id}: expect must be one of {', '.join(EXPECTED)}; got {self.expect!r}.")


@dataclass(frozen=True)
class Registration:
    """A study file: stages by name, in the order in which they run, and hypotheses.

    `correction: holm` corrects the verdicts for the number of pooled claims (Holm's step-down, family-wise level 0.05); claims
    about single settings stay uncorrected beside them.
    """

    stages: dict[str, Stage]
    hypotheses: list[Hypothesis]
    correction: str = "none"


def load_registration(path: Path) -> Registration:
    """Read a study file; ValueError naming what is missing or unknown in it."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        stages = {name: Stage(**stage) for name, stage in values["stages"].items()}
        hypotheses = [Hypothesis(**hypothesis) for hypothesis in values["hypotheses"]]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a study: {error}") from error
    correction = values.get("correction", "none")
    if correction not in CORRECTIONS:
        raise ValueError(f"{path}: correction must be one of {', '.join(CORRECTIONS)}; got {correction!r}.")
    for name, stage in stages.items():
        if bool(stage.where) == bool(stage.families or stage.bases) or any(len(pair) != 2 for pair in stage.where):
            raise ValueError(
                f"stage {name}: give its settings as families and bases, or as where: [[family, base], ...]."
            )
        _check_tuning(name, stage, stages)
    for hypothesis in hypotheses:
        _check_hypothesis(hypothesis, stages)
    return Registration(stages, hypotheses, correction)


def _check_tuning(name: str, stage: Stage, stages: dict[str, Stage]) -> None:
    """ValueError unless a tuned stage has a tuning stage before it that shares its settings, and no run with it."""
    if stage.tuned_on is None:
        return
    tuning = dict(list(stages.items())[: list(stages).index(name)]).get(stage.tuned_on)
    if tuning is None:
        raise ValueError(f"stage {name}: no stage before it is called {stage.tuned_on!r}.")
    if stage.rates != [1.0]:
        raise ValueError(f"stage {name}: rates are chosen on {stage.tuned_on}; it has none of its own.")
    missing = [variant for variant in suite(stage.suite) if variant not in suite(tuning.suite)]
    missing += [", ".join(one) for one in stage.settings_compared if one not in tuning.settings_compared]
    if missing:
        raise ValueError(f"stage {name}: stage {stage.tuned_on} does not run {missing[0]!r}.")
    if set(stage.base_seeds) & set(tuning.base_seeds) or set(stage.seeds) & set(tuning.seeds):
        raise ValueError(f"stage {name}: its seeds and base seeds must be others than those of {stage.tuned_on}.")


def _check_hypothesis(hypothesis: Hypothesis, stages: dict[str, Stage]) -> None:
    if hypothesis.stage not in stages:
        raise ValueError(f"hypothesis {hypothesis.id}: no stage is called {hypothesis.stage!r}.")
    missing = {hypothesis.variant, hypothesis.against} - set(stages[hypothesis.stage].variants)
    if missing:
        raise ValueError(f"hypothesis {hypothesis.id}: stage {hypothesis.stage} does not run {min(missing)!r}.")
