"""Run configurations without a run: composed as `python -m recipe.exgrpo.main` composes them, in a second and without verl."""

import importlib.util
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIG_DIR = Path(__file__).resolve().parent / "config"


class CompositionError(ValueError):
    """A script or an override that makes no configuration; the message names it."""


def verl_config_dir() -> Path:
    """Folder of verl's yaml files, found without importing verl (`pkg://` would import it)."""
    return Path(importlib.util.find_spec("verl").origin).parent / "trainer" / "config"


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration for hydra `overrides`. Raises CompositionError for a key, preset or value that does not exist."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    searchpath = f"hydra.searchpath=[file://{verl_config_dir()}]"
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base=None):
            return hydra.compose("exgrpo_trainer", overrides=[searchpath, *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise CompositionError(_first_sentence(error)) from error


def _first_sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])


def script_overrides(script: Path, arguments: Sequence[str] = ()) -> list[str]:
    """The overrides that `script --dry-run` prints, one a line, under this process's environment.

    Raises CompositionError if the script fails or does not exist.
    """
    command = ["bash", str(script), *arguments, "--dry-run"]
    process = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    if process.returncode:
        detail = process.stderr.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise CompositionError(f"{script}: --dry-run failed: {detail[0]}")
    return process.stdout.splitlines()


def resolve_target(arguments: Sequence[str]) -> list[str]:
    """Overrides of a command line: a script followed by overrides, or overrides alone."""
    if arguments and "=" not in arguments[0]:
        return script_overrides(Path(arguments[0]), arguments[1:])
    return list(arguments)
