"""Checks of experience from elsewhere: what `exgrpo.experience.init_from` names must be there, and readable to its last row,
when a run starts anew."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError

from recipe.exgrpo.checkpoint.errors import ExperienceStateError
from recipe.exgrpo.checks.findings import Finding, error, warning
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.core.buffer import ExperienceBuffer
from recipe.exgrpo.core.policies import make_policy, policy_class
from recipe.exgrpo.core.policies.luffy import Luffy
from recipe.exgrpo.experience.grading import require_function
from recipe.exgrpo.experience.importing import Importer
from recipe.exgrpo.experience.sources import Source, SourceError
from recipe.exgrpo.experience.target import Target
from recipe.exgrpo.experience.traces import BadTrace
from recipe.exgrpo.runs.folder import newest_whole

KEY = "exgrpo.experience.init_from"
Examine = Callable[[Source], int]  # reads all of a source as the run will; the bytes that it would store at the most


@dataclass(frozen=True)
class Imports:
    """What was found in the named files and states, and the host bytes that their traces take if the reward accepts all."""

    findings: tuple[Finding, ...] = ()
    bytes: int = 0


def look_at_imports(run: Run, readable: bool) -> Imports:
    """An error for each file or state that is not there or has a row that is none (`exgrpo.experience.skip_bad`: whole files
    only), a warning where traces would change nothing, or are missing. Without questions that are `readable`, and the
    tokenizer, rows are only parsed, and bytes not known."""
    named, policy = run.settings.experience.init_from, policy_class(run.settings.policy)
    if issubclass(policy, Luffy) and not named:
        text = f"{KEY} is empty: exgrpo.policy={run.settings.policy} then trains as on-policy (docs/experience.md)."
        return Imports((warning(text),))
    if named and make_policy(run.settings, run.group_size).store is None:
        text = f"{KEY} is set, and exgrpo.policy={run.settings.policy} keeps no experience: nothing is read."
        return Imports((warning(text),))
    if not named or newest_whole(run.folder):  # a run that resumes has what it read
        return Imports()
    return _looked_at(run, named, _importer(run).examine if readable and run.tokenizer_folder else _parsed(run))


def _looked_at(run: Run, named: tuple[str, ...], examine: Examine) -> Imports:
    findings, size = [*_ungradable(run)], 0
    for path in named:
        try:
            size += examine(Source(Path(path)))
        except SourceError as problem:
            remedy = "Make traces with data/prepare_train.py --traces or exgrpo experience import."
            findings.append(error(f"{KEY}: {problem} {remedy}"))
        except BadTrace as problem:
            remedy = "Mend the row, or set exgrpo.experience.skip_bad=true to leave out what cannot be read."
            findings.append(error(f"{KEY}: {problem} {remedy}"))
        except ExperienceStateError as problem:
            findings.append(error(f"{KEY}: {problem}"))
        except TemplateError:  # the checks of the tokenizer say so
            return Imports(tuple(findings))
    return Imports(tuple(findings), size)


def _ungradable(run: Run) -> Iterator[Finding]:
    try:
        require_function(run.config.reward)
    except ValueError as problem:
        yield error(f"{KEY}: {problem}")


def _importer(run: Run) -> Importer:
    """The run's own, up to what only the run can do: grade, and score with its actor."""
    target = Target.of(run.config, graded=False)
    return Importer(target, ExperienceBuffer(run.group_size, run.settings.buffer), run.settings.experience, list)


def _parsed(run: Run) -> Examine:
    """Looks at rows alone."""

    def parse(source: Source) -> int:
        for trace in source.traces():
            if isinstance(trace, BadTrace) and not run.settings.experience.skip_bad:
                raise trace
        return 0

    return parse
