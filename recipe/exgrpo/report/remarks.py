"""What limits a comparison of runs, one sentence each: what every reader of the table must know."""

from collections.abc import Iterator, Sequence

from recipe.exgrpo.report.comparison import Comparison
from recipe.exgrpo.report.groups import Group
from recipe.exgrpo.runs.metrics import VALIDATION
from verl_ext.text import one_line

# What runs of one variant may differ in: seeds, where they are, and how far they were to go.
OWN = ("seed", "trainer.default_local_dir", ".experiment_name", "trainer.total_training_steps")


def remarks(groups: Sequence[Group], comparison: Comparison, reference: str) -> list[str]:
    """The sentences, in the order of the groups."""
    found = [text for group in groups for text in (*_of_runs(group), *_of_group(group, comparison))]
    found += [
        text for group in groups if group.name != reference for text in _of_pair(group.name, comparison, reference)
    ]
    single = [f"`{name}`" for (name,), curves in comparison.curves.items() if curves.shape[1] == 1]
    if single:
        found.append(f"Without interval or band, for a single run: {', '.join(single)}.")
    return [one_line(text) for text in found]


def _of_runs(group: Group) -> Iterator[str]:
    for run in group.runs:
        if run.torn:
            yield f"{run.folder}: the last line is torn (an interruption); the run is read up to step {run.last_step}."
        if run.validation.empty:
            yield f"{run.folder} has no {VALIDATION} (trainer.test_freq); it is in no held-out figure."
        if not run.settings:
            yield f"{run.folder} has no record of its start: its seed and K are unknown, so it has no pair."


def _of_group(group: Group, comparison: Comparison) -> Iterator[str]:
    name, curves = group.name, comparison.curves.get((group.name,))
    lengths = ", ".join(f"{run.folder.name} {run.last_step}" for run in group.runs)
    if len({run.last_step for run in group.runs}) > 1:
        yield f"The runs of `{name}` have unequal length, in steps: {lengths}."
    if curves is not None and curves.isna().any(axis=None):
        shared = curves.dropna().index
        if shared.empty:
            yield f"The runs of `{name}` were never validated at the same step; it is in no held-out figure."
        else:
            steps = f"{len(shared)} steps all its runs share, {shared[0]} to {shared[-1]}"
            yield f"Held-out figures of `{name}` are at the {steps}."
    if differing := _unlike(group):
        yield f"The runs of `{name}` differ in more than their seed: {', '.join(differing)}."


def _unlike(group: Group) -> list[str]:
    """Settings in which recorded runs of a group differ though they should not."""
    settings = [run.settings for run in group.runs if run.settings]
    keys = dict.fromkeys(key for one in settings for key in one)
    return [
        key
        for key in keys
        if not key.endswith(OWN) and any(one.get(key) != settings[0].get(key) for one in settings[1:])
    ]


def _of_pair(name: str, comparison: Comparison, reference: str) -> Iterator[str]:
    ours, theirs = (comparison.curves.get((one,)) for one in (name, reference))
    if ours is None or theirs is None:
        return
    between, pair = f"`{name}` and `{reference}`", comparison.difference((name,), reference)
    if pair is None:
        yield f"No difference of {between}: they share no seed, or no validation after step 0."
        return
    alone = ours.columns.symmetric_difference(theirs.columns)
    if len(alone):
        yield f"Differences of {between} leave out what only one of them has: seed {', '.join(sorted(map(str, alone)))}."
    last = {int(curve.index[-1]) for one in (name, reference) if (curve := comparison.curve((one,))) is not None}
    if last != {pair.index[-1]}:
        yield f"Differences of {between} are up to step {pair.index[-1]}, the last validation that all pairs have."
