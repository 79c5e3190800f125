"""What limits a comparison of runs, a sentence each: every reader of the table must know it."""

from collections.abc import Iterator, Sequence

from recipe.exgrpo.report.groups import Group, compared
from recipe.exgrpo.runs.metrics import VALIDATION
from verl_ext.text import one_line

# What runs of one variant may differ in: seeds, where they are, and how far they were to go.
OWN = ("seed", "trainer.default_local_dir", ".experiment_name", "trainer.total_training_steps")


def remarks(groups: Sequence[Group], reference: Group) -> list[str]:
    """The sentences, in the order of the groups."""
    found = [text for group in groups for text in (*_of_runs(group), *_of_group(group))]
    found += [text for group in groups if group is not reference for text in _of_pair(group, reference)]
    single = [f"`{group.name}`" for group in groups if len(group.validated) == 1]
    if single:
        found.append(f"Without interval or band, for a single run: {', '.join(single)}.")
    return [one_line(text) for text in found]


def _of_runs(group: Group) -> Iterator[str]:
    for run in group.runs:
        if run.torn:
            yield f"{run.folder}: the last line is torn (an interruption); the run is read up to step {run.last_step}."
        if not run.validation:
            yield f"{run.folder} has no {VALIDATION} (trainer.test_freq); it is in no held-out figure."
        if not run.settings:
            yield f"{run.folder} has no record of its start: its seed is unknown, so it has no pair, and so is K."


def _of_group(group: Group) -> Iterator[str]:
    name, runs = group.name, group.validated.values()
    lengths = ", ".join(f"{run.folder.name} {run.last_step}" for run in group.runs)
    if len({run.last_step for run in group.runs}) > 1:
        yield f"The runs of `{name}` have unequal length, in steps: {lengths}."
    if len(runs) > 1 and group.curves is None:
        yield f"The runs of `{name}` were never validated at the same step; it is in no held-out figure."
    elif any(list(run.validation) != group.curves.steps for run in runs):
        steps = group.curves.steps
        yield f"Held-out figures of `{name}` are at the {len(steps)} steps all its runs share, {steps[0]} to {steps[-1]}."
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


def _of_pair(group: Group, reference: Group) -> Iterator[str]:
    pair, between = compared(group, reference), f"`{group.name}` and `{reference.name}`"
    if pair is None:
        if group.validated and reference.validated:
            yield f"No difference of {between}: they share no seed, or no step of validation."
        return
    left = sorted(map(str, set(group.validated) ^ set(reference.validated)))
    if left:
        yield f"Differences of {between} leave out what only one of them has: seed {', '.join(left)}."
    last = {g.curves.steps[-1] for g in (group, reference) if g.curves}
    if last != {pair[0].steps[-1]}:
        yield f"Differences of {between} are up to step {pair[0].steps[-1]}, the last validation that all pairs have."
