"""The report of a study: Markdown tables and a figure of learning curves, the same bytes from the same results."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recipe.exgrpo.lab.files import write_atomically
from recipe.exgrpo.lab.suites import VARIANTS
from recipe.exgrpo.lab.tables import RESULTS, TIMINGS, read_table
from recipe.exgrpo.report.parts import draw_curve, finish_panel, png, shown, spread, table_lines
from recipe.exgrpo.report.stats import area_under_curve, interval, paired

BANDS = 8  # variants of a figure that still have bands
LEGEND_COLUMNS = 6
COSTS = ("fresh_rollouts", "sampled_tokens", "updated_tokens", "scored_tokens")
HEADER = (
    "variant", "runs", "final pass@1", "final difference", "area", "area difference",
    "fresh rollouts", "tokens sampled", "tokens updated", "tokens scored", "seconds",
)  # fmt: skip


@dataclass
class Runs:
    """All runs of one variant in one setting; every dict is keyed by (base seed, seed)."""

    steps: list[int] = field(default_factory=list)
    curves: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    costs: dict[tuple[int, int], dict[str, float]] = field(default_factory=dict)
    seconds: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def final(self) -> dict[tuple[int, int], float]:
        return {key: curve[-1] for key, curve in self.curves.items()}

    @property
    def area(self) -> dict[tuple[int, int], float]:
        return {key: area_under_curve(self.steps, curve) for key, curve in self.curves.items()}


Settings = dict[tuple[str, str], dict[str, Runs]]  # (family, base) -> variant -> runs


def read_results(folder: Path) -> Settings:
    """The tables of `exgrpo lab run`, by setting and variant, variants in the order of their table.

    Raises ValueError when runs of one variant were evaluated at unlike steps.
    """
    found: Settings = defaultdict(lambda: defaultdict(Runs))
    steps = defaultdict(list)
    for row in read_table(folder / RESULTS):
        runs, key = found[row["family"], row["base"]][row["variant"]], (row["base_seed"], row["seed"])
        steps[id(runs), key].append(row["step"])
        runs.curves.setdefault(key, []).append(row["pass_rate"])
        runs.costs[key] = {name: row[name] for name in COSTS}
        runs.steps = steps[id(runs), key]
    for row in read_table(folder / TIMINGS):
        found[row["family"], row["base"]][row["variant"]].seconds[row["base_seed"], row["seed"]] = row["seconds"]
    for (name, base), variants in found.items():
        for label, runs in variants.items():
            if any(steps[id(runs), key] != runs.steps for key in runs.curves):
                raise ValueError(f"runs of {label} on {name}, {base} were evaluated at different steps.")
    place = {name: i for i, name in enumerate(VARIANTS)}
    ordered = {setting: sorted(variants, key=lambda v: place.get(v, len(place))) for setting, variants in found.items()}
    return {setting: {name: found[setting][name] for name in names} for setting, names in ordered.items()}


def summarise(results: Settings, reference: str) -> list[dict]:
    """One JSON-able row a setting and variant; differences are paired by (base seed, seed) with 95 % t-intervals."""
    rows = []
    for (name, base), variants in results.items():
        other = variants.get(reference, Runs())
        for label, runs in variants.items():
            differs = label != reference
            final = paired(runs.final, other.final) if differs else None
            area = paired(runs.area, other.area) if differs else None
            rows.append(
                {"family": name, "base": base, "variant": label, "runs": len(runs.curves)}
                | spread("final", interval(list(runs.final.values())))
                | spread("final_difference", final)
                | spread("area", interval(list(runs.area.values())))
                | spread("area_difference", area)
                | {cost: float(np.mean([spent[cost] for spent in runs.costs.values()])) for cost in COSTS}
                | {"seconds": float(np.mean(list(runs.seconds.values())))}
            )
    return rows


def markdown(rows: list[dict], reference: str) -> str:
    """The report as text: one table a setting; a difference whose interval excludes zero is bold."""
    parts = ["# Laboratory report", ""]
    parts += [
        f"Pass@1 on held-out questions. Differences are to `{reference}`, paired by base seed and seed, with 95 % t-intervals;",
        "bold ones exclude zero. The area is that under the learning curve, as its mean height. Costs are means a run.",
    ]
    return "\n".join([*parts, *setting_tables(rows), "", "![learning curves](curves.png)", ""])


def setting_tables(rows: list[dict], level: int = 2) -> list[str]:
    """Lines of one Markdown table a setting, under headings of `level`."""
    lines = []
    for setting in dict.fromkeys((row["family"], row["base"]) for row in rows):
        chosen = [_cells(row) for row in rows if (row["family"], row["base"]) == setting]
        lines += ["", f"{'#' * level} {setting[0]}, {setting[1]} base", "", *table_lines(HEADER, chosen)]
    return lines


def _cells(row: dict) -> list[str]:
    return [
        f"`{row['variant']}`",
        str(row["runs"]),
        shown(row, "final"),
        shown(row, "final_difference", signed=True),
        shown(row, "area"),
        shown(row, "area_difference", signed=True),
        *(f"{row[cost]:,.0f}" for cost in COSTS),
        f"{row['seconds']:.0f}",
    ]


def figure(results: Settings) -> bytes:
    """Learning curves as PNG, a panel a setting: the mean of the runs, and its 95 % t-interval as a band.

    A variant has one colour in all panels, and one entry in the legend below them. Beyond `BANDS` variants bands would hide the
    curves and are left out.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(label for variants in results.values() for label in variants))
    looks = {label: (colormaps["tab20"](i % 20), ("-", "--")[i // 20 % 2]) for i, label in enumerate(labels)}
    legend_height = 0.25 * -(-len(labels) // LEGEND_COLUMNS)
    drawing = Figure(figsize=(max(5.5 * len(results), 8), 4.2 + legend_height), layout="constrained")
    panels, entries = drawing.subplots(1, len(results), squeeze=False)[0], {}
    for panel, ((name, base), variants) in zip(panels, results.items(), strict=True):
        for label, runs in variants.items():
            draw_curve(panel, label, runs.steps, runs.curves.values(), looks[label], len(labels) <= BANDS)
        entries |= {line.get_label(): line for line in panel.lines}
        finish_panel(panel, f"{name}, {base} base", "step", "held-out pass@1", legend=False)
    drawing.legend(handles=[entries[label] for label in labels], loc="outside lower center", ncols=LEGEND_COLUMNS)
    return png(drawing)


def write_report(folder: Path, reference: str) -> tuple[list[dict], list[Path]]:
    """Write `report.md` and `curves.png` into `folder`; returns the summary and what was written.

    Raises ValueError when no run of the variant `reference` is there.
    """
    results = read_results(folder)
    if not any(reference in variants for variants in results.values()):
        raise ValueError(f"no run of {reference!r} is in {folder}; differences need one (--against).")
    rows = summarise(results, reference)
    contents = {"report.md": markdown(rows, reference).encode(), "curves.png": figure(results)}
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return rows, [folder / name for name in contents]
