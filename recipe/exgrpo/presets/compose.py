"""Run configurations without a run: composed as `python -m recipe.exgrpo.main` composes them, in a second and without verl."""

import contextlib
import difflib
import importlib.util
import itertools
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from recipe.exgrpo.presets.paper_settings import flatten

ROOT = Path(__file__).resolve().parents[3]
CONFIG_DIR = Path(__file__).resolve().parents[1] / "config"


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
        with _hydra_of_our_own(), hydra.initialize_config_dir(str(CONFIG_DIR), version_base=None):
            return _with_window(hydra.compose("exgrpo_trainer", overrides=[searchpath, *overrides]))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise CompositionError(_explain(error)) from error


def _with_window(config: DictConfig) -> DictConfig:
    """`rollout.max_model_len`, where it is null, as prompt and response together: verl hands null on, and vLLM then keeps room
    for the model's whole window (131,072 tokens of a Llama). Lengths that are no numbers are for the checks to refuse."""
    lengths = [OmegaConf.select(config, f"data.max_{part}_length") for part in ("prompt", "response")]
    key = "actor_rollout_ref.rollout.max_model_len"
    if OmegaConf.select(config, key) is None and all(type(length) is int for length in lengths):
        OmegaConf.update(config, key, sum(lengths))
    return config


@contextlib.contextmanager
def _hydra_of_our_own() -> Iterator[None]:
    """Hydra keeps one composer in a global, and a run that hydra started has it taken."""
    from hydra.core.global_hydra import GlobalHydra

    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = outer


def _explain(error: Exception) -> str:
    """Hydra's message as one sentence that names the key and what to do about it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    unknown = re.match(r"Could not override '([^']+)'", lines[0])
    if unknown:
        return _unknown_key(unknown[1])
    override = getattr(error, "override", None)
    if override is not None and "=" not in override:
        return f"{override} is not of the form key=value."
    if override is not None:
        return f"{override} cannot be read ({lines[0]}); quote a value with special characters: \"key='value'\"."
    # What follows is for authors of configurations.
    return " ".join(itertools.takewhile(lambda line: not line.startswith(("Config search path", "3. To sweep")), lines))


def _unknown_key(key: str) -> str:
    groups = [path.name for path in CONFIG_DIR.iterdir() if path.is_dir()]
    known = [*groups, *flatten(OmegaConf.to_container(compose(), resolve=True))]
    meant = [name for name in known if name.endswith(f".{key}")] or difflib.get_close_matches(key, known, cutoff=0.8)
    hint = f"did you mean {' or '.join(meant[:3])}?" if meant else "`exgrpo config --full` lists all keys."
    return f"{key} is not a key; {hint} (+{key}=... would add it.)"


def is_launched(script: Path) -> bool:
    """True for a script that sources the common launcher. Others may know no --dry-run and would do their work."""
    return script.is_file() and 'launch.sh"\n' in script.read_text(encoding="utf-8", errors="replace")


def run_scripts() -> list[Path]:
    """Every script that starts one run."""
    return sorted(path for path in (ROOT / "scripts").rglob("*.sh") if is_launched(path))


def experiment_scripts() -> list[Path]:
    """Those of them that start an experiment of the paper, or ours of its size: a method on a backbone."""
    return [path for path in run_scripts() if "launch backbone=" in path.read_text(encoding="utf-8")]


def script_overrides(
    script: Path, arguments: Sequence[str] = (), switches: Mapping[str, str] | None = None
) -> list[str]:
    """The overrides that `script --dry-run` prints, one per line, under this process's environment and `switches`.

    Raises CompositionError if it is not a script that starts a run, or fails.
    """
    if not is_launched(script):
        known = {path.stem: str(path.relative_to(ROOT)) for path in run_scripts()}
        meant = [known[stem] for stem in difflib.get_close_matches(script.stem, known)] or ["scripts/*.sh"]
        raise CompositionError(f"{script} does not start a run; did you mean {' or '.join(meant)}?")
    command = ["bash", str(script), *arguments, "--dry-run"]
    process = subprocess.run(
        command, env=os.environ | dict(switches or {}), capture_output=True, text=True, check=False
    )
    if process.returncode:
        detail = process.stderr.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise CompositionError(f"{script}: --dry-run failed: {detail[0]}")
    return process.stdout.splitlines()


def names_script(arguments: Sequence[str]) -> bool:
    """True when a command line begins with a script; the root of the repository is the folder it runs in."""
    return bool(arguments) and "=" not in arguments[0]


def resolve_target(arguments: Sequence[str]) -> list[str]:
    """Overrides of a command line: a script followed by overrides, or overrides alone."""
    return script_overrides(Path(arguments[0]), arguments[1:]) if names_script(arguments) else list(arguments)
