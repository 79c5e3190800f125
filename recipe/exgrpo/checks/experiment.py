"""Checks of a resumed run against the record of its last start: is it the same experiment?"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from recipe.exgrpo.checks.findings import Finding, error, note, warning
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.presets.paper_settings import flatten
from recipe.exgrpo.runs.record import RecordError, last_config, starts
from verl_ext.files import sha256_of
from verl_ext.tools import LIMITS

# What makes it another experiment: name in exgrpo.resume_allow -> keys, or beginnings of keys that end in a dot or underscore.
EXPERIMENT = {
    "policy": (
        *(f"exgrpo.{key}" for key in ("policy", "admit", "rank", "gate", "place", "inject", "rho", "start_threshold")),
        "exgrpo.dynamic_sampling",
        *(f"exgrpo.{node}." for node in ("question", "bookkeeping", "mask", "refill", "rows", "prompts", "options")),
    ),
    "loss": (
        *(
            "exgrpo.loss.",
            "algorithm.",
            "actor_rollout_ref.actor.policy_loss.",
            "actor_rollout_ref.actor.loss_agg_mode",
        ),
        *("actor_rollout_ref.actor.clip_", "actor_rollout_ref.actor.kl_loss_", "actor_rollout_ref.actor.use_kl_loss"),
        *("actor_rollout_ref.actor.entropy_coeff", "actor_rollout_ref.actor.ppo_epochs"),
    ),
    "model": (
        *("actor_rollout_ref.model.path", "actor_rollout_ref.model.lora_", "actor_rollout_ref.model.target_modules"),
        "actor_rollout_ref.model.exclude_modules",
    ),
    "tokenizer": ("actor_rollout_ref.model.tokenizer_path",),
    "group_size": ("actor_rollout_ref.rollout.n",),
    "chat_template": (
        *("data.apply_chat_template_kwargs", "data.apply_chat_template_kwargs.", "preset.template"),
        "actor_rollout_ref.model.custom_chat_template",
    ),
    "temperature": tuple(f"actor_rollout_ref.rollout.{key}" for key in ("temperature", "top_p", "top_k")),
    "length": ("data.max_prompt_length", "data.max_response_length"),
    "tools": (
        "actor_rollout_ref.rollout.agent.default_agent_loop",
        *(f"actor_rollout_ref.rollout.multi_turn.{name}" for name in LIMITS),
    ),
    "reward": (
        *("reward.custom_reward_function.path", "reward.custom_reward_function.name"),
        *(f"reward.custom_reward_function.reward_kwargs.{key}" for key in ("think_", "rules_module")),
        *("reward.reward_manager.", "reward.reward_model.enable", "reward.reward_model.model_path"),
    ),
}
# Where a run is and how it starts: no difference between two starts of one experiment.
PLACE = (
    "trainer.resume_",
    "trainer.default_local_dir",
    "exgrpo.resume_",
    "data.train_files",
    "data.val_files",
    "ray_kwargs.",
)


@dataclass(frozen=True)
class Change:
    """Something that differs from the last start: its name in `exgrpo.resume_allow` (None: only logged) and a clause."""

    name: str | None
    clause: str


def experiment_findings(run: Run, checkpoint: Path) -> Iterator[Finding]:
    """What this run changes of the run that saved `checkpoint`: refused unless `exgrpo.resume_allow` names it, or noted."""
    try:
        changes = list(changes_since(run, checkpoint.parent))
    except RecordError as problem:
        yield error(
            f"trainer.default_local_dir: {problem} It says what run this is: restore it, or move its folder away to go on "
            "without comparing."
        )
        return
    allowed = set(run.settings.resume_allow)
    names = sorted({change.name for change in changes if change.name})
    clauses = "; ".join(change.clause for change in changes if change.name)
    if set(names) - allowed:
        yield error(
            f"exgrpo.resume_allow: {checkpoint} is another experiment's: {clauses}; exgrpo.resume_allow=[{','.join(names)}] "
            "accepts that, RUN (trainer.default_local_dir) with another folder starts anew."
        )
    elif names:
        yield warning(f"accepted by exgrpo.resume_allow: {clauses}.")
    rest = [change.clause for change in changes if not change.name]
    if rest:
        yield note(f"changed since the last start: {'; '.join(rest)}.")


def changes_since(run: Run, root: Path) -> Iterator[Change]:
    """How this run differs from the record of the last start in `root`, if that has one. Raises RecordError."""
    recorded = last_config(root)
    if not recorded:
        return
    before = flatten(recorded)
    now = flatten(OmegaConf.to_container(run.config, resolve=True))
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old != new and not key.startswith(PLACE):
            yield Change(_name_of(key), f"{key} was {old!r} and is {new!r}")
    yield from _data_changes(run, starts(root)[-1])


def _name_of(key: str) -> str | None:
    for name, keys in EXPERIMENT.items():
        if any(key == known or (known[-1] in "._" and key.startswith(known)) for known in keys):
            return name
    return None


def _data_changes(run: Run, start: Path) -> Iterator[Change]:
    """Files count by what is in them: a copy elsewhere is the same data, the same path may not be."""
    recorded = _recorded_files(start)
    for split, name in (("train", "data"), ("val", None)):
        key, paths = f"data.{split}_files", run.files[f"{split}_files"]
        before = [entry["sha256"] for entry in recorded if entry["key"] == key]
        if before and before != [_digest(path) for path in paths]:
            restart = "; accepting starts the new files at their beginning" if name else ""
            yield Change(
                name, f"{key} has other contents than at the last start ({', '.join(map(str, paths))}){restart}"
            )


def _recorded_files(start: Path) -> list[dict[str, Any]]:
    try:
        return json.loads((start / "run.json").read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError):
        return []


def _digest(path: str) -> str | None:
    """None for a file that cannot be read: the checks of the data say so."""
    try:
        return sha256_of(Path(path))
    except OSError:
        return None
