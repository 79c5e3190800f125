"""What would stop a run, before anything expensive starts: each finding is one sentence that names the key and the remedy.

`check` is for a run: it raises on the first error and logs warnings. `inspect_run` yields everything, for `exgrpo check`.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace

from omegaconf import DictConfig

from recipe.exgrpo.checks.configuration import configuration_findings, policy_findings
from recipe.exgrpo.checks.cores import core_findings
from recipe.exgrpo.checks.data import data_findings
from recipe.exgrpo.checks.disk import disk_findings
from recipe.exgrpo.checks.environment import environment_findings
from recipe.exgrpo.checks.experience import look_at_imports
from recipe.exgrpo.checks.findings import ERROR, NOTE, Finding, PreflightError, error
from recipe.exgrpo.checks.machine import Machine
from recipe.exgrpo.checks.memory import memory_findings
from recipe.exgrpo.checks.model import model_findings
from recipe.exgrpo.checks.resume import resume_findings
from recipe.exgrpo.checks.reward import reward_findings
from recipe.exgrpo.checks.run import Run, settings_of
from recipe.exgrpo.checks.sync import sync_findings
from recipe.exgrpo.checks.tokenizer import tokenizer_findings
from recipe.exgrpo.checks.tools import tool_findings
from recipe.exgrpo.checks.types import type_findings

__all__ = ["PreflightError", "check", "inspect_run"]

logger = logging.getLogger(__name__)


def check(config: DictConfig) -> None:
    """Raise PreflightError on the first error, log the rest."""
    for finding in inspect_run(config):
        if finding.severity == ERROR:
            raise PreflightError(finding.text)
        logger.log(logging.INFO if finding.severity == NOTE else logging.WARNING, "%s", finding.text)


def inspect_run(config: DictConfig) -> Iterator[Finding]:
    """Everything found, cheapest first; what calculates with settings comes only if they are sound."""
    unsound = list(_setting_findings(config))
    if unsound:
        yield from unsound
        return
    run = Run.of(config)
    configuration, data = list(configuration_findings(run)), list(data_findings(run))
    readable = not any(finding.severity == ERROR for finding in data)
    machine = Machine.here()
    yield from (*environment_findings(run, machine=machine), *configuration, *data)
    yield from reward_findings(run)
    yield from model_findings(run)
    yield from tokenizer_findings(run, readable)
    yield from tool_findings(run)
    yield from core_findings(run, machine)
    yield from sync_findings(run)
    imports = look_at_imports(run, readable)
    yield from memory_findings(replace(run, imported=imports.bytes))
    yield from disk_findings(run)
    yield from imports.findings
    yield from resume_findings(run)


def _setting_findings(config: DictConfig) -> Iterator[Finding]:
    """What is wrong with the `exgrpo` node, else with types, else with the policy."""
    try:
        settings = settings_of(config)
    except PreflightError as problem:
        yield error(str(problem))
        return
    wrong = list(type_findings(config))
    yield from wrong or policy_findings(settings, config.actor_rollout_ref.rollout.n)
