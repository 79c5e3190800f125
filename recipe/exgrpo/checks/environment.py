"""Checks of what is installed: ExGRPO overrides methods of one verl release, and another release may call them otherwise."""

from collections.abc import Callable, Iterator
from pathlib import Path

from recipe.exgrpo.checks.findings import Finding, error, warning
from recipe.exgrpo.checks.run import Run
from verl_ext.packages import installed

REQUIRED = Path(__file__).parents[1] / "REQUIRED_VERL.txt"
TRANSFER_QUEUE = "0.1.11"
# trainer.logger of verl (utils/tracking.py): those that are a package of their name, and the others.
LOGGER_PACKAGES = ("wandb", "tensorboard", "mlflow", "swanlab", "clearml", "trackio")
LOGGERS = ("console", "file", *LOGGER_PACKAGES, "vemlp_wandb", "rl_insight")


def required_verl() -> str:
    """The verl release this recipe is written for (recipe/exgrpo/REQUIRED_VERL.txt)."""
    lines = REQUIRED.read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("VERSION=") for line in lines if line.startswith("VERSION="))


def environment_findings(run: Run, version: Callable[[str], str | None] = installed) -> Iterator[Finding]:
    """Wrong or missing packages. `version` looks one up; a machine that only checks need not have flash-attn."""
    wanted = required_verl()
    if version("verl") != wanted:
        yield error(f"verl {version('verl')} is installed, ExGRPO is written for {wanted}; pip install verl=={wanted}.")
    if version("TransferQueue") != TRANSFER_QUEUE:
        yield warning(
            f"TransferQueue {version('TransferQueue')} is installed, {TRANSFER_QUEUE} is tested; "
            f"pip install TransferQueue=={TRANSFER_QUEUE}."
        )
    yield from _logger_findings(run, version)
    attention = (run.config.actor_rollout_ref.model.get("override_config") or {}).get("attn_implementation")
    if run.config.trainer.device == "cuda" and attention is None and version("flash-attn") is None:
        yield warning(
            "flash-attn is not installed here and is needed where the run trains; install it (requirements-gpu.txt) or set "
            "+actor_rollout_ref.model.override_config.attn_implementation=sdpa (slower, padded batches)."
        )


def _logger_findings(run: Run, version: Callable[[str], str | None]) -> Iterator[Finding]:
    """verl meets an unknown or missing logger after models and servers are up."""
    names = run.config.trainer.logger or []
    for name in [names] if isinstance(names, str) else names:
        if name not in LOGGERS:
            yield error(f"trainer.logger: {name!r} is not one of {', '.join(LOGGERS)}.")
        elif name in LOGGER_PACKAGES and version(name) is None:
            yield error(
                f"trainer.logger: {name} is not installed; pip install {name}, or leave it out (LOGGER=console)."
            )
