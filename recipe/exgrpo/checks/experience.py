"""Checks of experience from elsewhere: what `exgrpo.experience.init_from` names must be there when a run starts anew."""

from collections.abc import Iterator
from pathlib import Path

from recipe.exgrpo.checks.findings import Finding, error, warning
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.core.policies import make_policy, policy_class
from recipe.exgrpo.core.policies.luffy import Luffy
from recipe.exgrpo.experience.sources import Source, SourceError
from recipe.exgrpo.runs.folder import newest_whole

KEY = "exgrpo.experience.init_from"


def experience_findings(run: Run) -> Iterator[Finding]:
    """An error for each file or state that is not there; a warning where traces would change nothing, or are missing."""
    named, policy = run.settings.experience.init_from, policy_class(run.settings.policy)
    if issubclass(policy, Luffy) and not named:
        yield warning(
            f"{KEY} is empty: exgrpo.policy={run.settings.policy} then trains as on-policy (docs/experience.md)."
        )
    if named and make_policy(run.settings, run.group_size).store is None:
        yield warning(f"{KEY} is set, and exgrpo.policy={run.settings.policy} keeps no experience: nothing is read.")
        return
    if newest_whole(run.folder) is None:  # a run that resumes has what it read
        yield from _missing(named)


def _missing(named: tuple[str, ...]) -> Iterator[Finding]:
    for path in named:
        try:
            Source(Path(path))
        except SourceError as problem:
            yield error(
                f"{KEY}: {problem} Make traces with data/prepare_train.py --traces or exgrpo experience import."
            )
