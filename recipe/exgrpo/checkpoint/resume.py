"""Whether stored experience still fits the run that resumes it: what has changed since, and what accepting that does."""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipe.exgrpo.checkpoint.errors import MismatchedState
from recipe.exgrpo.core.buffer import ExperienceBuffer, Origin
from recipe.exgrpo.core.buffer.state import Snapshot

logger = logging.getLogger(__name__)

RUN_KEYS = ("model", "tokenizer", "group_size", "policy")  # of a fingerprint, a dict with a JSON-able value for each


@dataclass(frozen=True)
class Current:
    """What the run that resumes would have its rollouts answer.

    `chat_template` is a SHA-256, `max_response_length` in tokens; `prompt_hash` gives the `core.buffer.prompt_hash` of a
    question of today's dataset; `tools` is the fingerprint of what tools show the model ("" without).
    """

    chat_template: str
    temperature: float
    max_response_length: int
    prompt_hash: Callable[[str], int]
    tools: str = ""

    @property
    def origin(self) -> Origin:
        """What new rollouts are stamped with."""
        return Origin("rollout", self.chat_template, self.temperature, tools=self.tools)


@dataclass(frozen=True)
class Difference:
    """Something that changed: its key in `exgrpo.resume_allow`, a clause that says so, and the handles of the trajectories
    that are dropped if it is accepted."""

    key: str
    clause: str
    drop: np.ndarray | None = None


def reconcile(
    folder: Path, buffer: ExperienceBuffer, stored: dict, now: dict, current: Current, allow: Collection[str]
) -> None:
    """Make `buffer`, saved in `folder` by a run with fingerprint `stored`, fit this run, whose fingerprint is `now`.

    Raises MismatchedState naming everything that differs unless all of it is in `allow`. If it is, what no longer makes
    sense is dropped (counts and retired questions stay), and success counts are scaled to another group size.
    """
    found = [*_run_differences(buffer, stored, now)]
    if "tokenizer" not in {difference.key for difference in found}:  # else no trajectory would be left to compare
        found += _trajectory_differences(buffer, current)
    if {difference.key for difference in found} - set(allow):
        clauses = "; ".join(difference.clause for difference in found)
        keys = ",".join(difference.key for difference in found)
        raise MismatchedState(folder, f"{clauses}. Refused; exgrpo.resume_allow=[{keys}] accepts it.")
    for difference in found:
        logger.warning("%s: accepted: %s", folder, difference.clause)
    drops = [difference.drop for difference in found if difference.drop is not None]
    if drops:
        lost = buffer.drop_trajectories(np.unique(np.concatenate(drops)))
        logger.warning("%s: %d trajectories dropped, counts and retired questions kept", folder, lost)
    if buffer.group_size != now["group_size"]:
        buffer.change_group_size(now["group_size"])


def _run_differences(buffer: ExperienceBuffer, stored: dict, now: dict) -> Iterator[Difference]:
    effect = {
        "tokenizer": "; token ids would be other text, and accepting drops all trajectories",
        "group_size": "; accepting scales the success counts",
    }
    for key in RUN_KEYS:
        if stored.get(key) != now[key]:
            clause = f"saved with {key} {stored.get(key)!r}, this run has {now[key]!r}{effect.get(key, '')}"
            yield Difference(key, clause, buffer.candidates().row if key == "tokenizer" else None)


def _trajectory_differences(buffer: ExperienceBuffer, current: Current) -> Iterator[Difference]:
    """Those of single trajectories. What was not known when a trajectory was stored is not compared."""
    frozen = buffer.snapshot()
    rows = frozen.rows["row_serial"]

    def difference(key: str, differs: np.ndarray, clause: str, drops: bool = False) -> Iterator[Difference]:
        if differs.any():
            clause = f"{np.count_nonzero(differs)} of {len(rows)} trajectories {clause}"
            yield Difference(key, clause, rows[differs] if drops else None)

    origins, origin = [Origin(**values) for values in frozen.meta["origins"]], frozen.rows["row_origin"]
    other_template = np.array([o.chat_template not in ("", current.chat_template) for o in origins], bool)
    # What was imported was never sampled by this run, and its temperature says nothing about a change.
    other_temperature = np.array(
        [o.source == "rollout" and o.temperature != current.temperature for o in origins], bool
    )
    # Of an import it may not be known what tools answered.
    other_tools = np.array(
        [o.tools != current.tools and (o.source == "rollout" or bool(o.tools)) for o in origins], bool
    )
    yield from difference(
        "tools", other_tools[origin], "were collected with other tools or other limits on their turns"
    )
    yield from difference("chat_template", other_template[origin], "were collected with another chat template")
    yield from difference(
        "temperature", other_temperature[origin], f"were not sampled at temperature {current.temperature}"
    )
    yield from difference(
        "prompt", _changed_prompts(frozen, current), "answer a prompt that has changed (accepting drops them)", True
    )
    limit = current.max_response_length
    yield from difference(
        "length",
        frozen.rows["row_length"] > limit,
        f"are longer than data.max_response_length={limit} (accepting drops them)",
        True,
    )


def _changed_prompts(frozen: Snapshot, current: Current) -> np.ndarray:
    """Which trajectories answer other prompt ids than their question has today, bool [R]."""
    stored, question = frozen.rows["row_prompt_hash"], frozen.rows["row_question"]
    known = np.flatnonzero(stored)
    questions, inverse = np.unique(question[known], return_inverse=True)
    logger.info("comparing the prompts of %d stored questions with today's", len(questions))
    today = np.array([current.prompt_hash(frozen.names[q]) for q in questions.tolist()], np.uint64)
    changed = np.zeros(len(stored), bool)
    changed[known] = stored[known] != today[inverse]
    return changed


def model_fingerprint(config) -> str:
    """A model family as one string, from a Hugging Face model config: type, width, depth and vocabulary."""
    sizes = (getattr(config, key, None) for key in ("hidden_size", "num_hidden_layers", "vocab_size"))
    return "-".join(map(str, (config.model_type, *sizes)))


def tokenizer_fingerprint(tokenizer) -> str:
    """SHA-256 of what gives token ids their meaning: the vocabulary, added tokens included."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def template_fingerprint(tokenizer, arguments: dict) -> str:
    """SHA-256 of what turns messages into a prompt: the chat template and its keyword arguments."""
    return hashlib.sha256(json.dumps([tokenizer.chat_template, arguments], sort_keys=True).encode()).hexdigest()
