"""One trace as a file or a saved state has it, before it is rendered and graded; every form that is understood."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recipe.exgrpo.core.buffer import Provenance
from recipe.exgrpo.core.buffer.records import LOG_PROB_SLACK, MAX_ID
from recipe.exgrpo.experience.messages import CONVERSATION_KEYS, plain, shown, split, takes_turns

# Columns that are looked for, in this order; the first that a row has counts.
QUESTION_KEYS = ("question_id", "question")
PROMPT_KEYS = ("prompt", "problem", "question")
RESPONSE_KEYS = ("response", "target", "text", "completion", "solution", "answer")
MEASURED, SCORED, ONE = "measured", "scored", "one"  # see `core.buffer.Origin`
MAX_COUNT = 2**15 - 1  # what a state has room for, of successes and of the size of a group
MAX_NAME = 200  # characters of a source


class BadTrace(ValueError):
    """A row that is no trace: `file`, `place` in it ("line 7") and `reason`, a clause."""

    def __init__(self, file: str | Path, place: str, reason: str):
        super().__init__(f"{file}, {place}: {reason}.")
        self.file, self.place, self.reason = Path(file), place, reason

    def __reduce__(self):
        return type(self), (self.file, self.place, self.reason)


@dataclass(frozen=True)
class Place:
    """Where a trace stands."""

    file: str
    place: str

    def bad(self, reason: str) -> BadTrace:
        return BadTrace(self.file, self.place, reason)


@dataclass(frozen=True)
class Trace:
    """A response to a question, and what is known of it.

    The question is named by `question` (its id), `prompt` (chat messages, or the bare question), or both. The response is
    `token_ids` int32 [L] with `log_probs` float32 [L] in nats (None: missing) and `mask` bool [L] (None: all are the model's
    own), `text`, or `turns` (an assistant's messages with a tool's between them); with ids of the tokenizer `tokenizer` (its
    fingerprint, None: the run's) `text` is the fallback for another one. `prompt_hash` is that of the prompt the log-probs
    belong to (0: not known). The rest is as in `core.buffer.records`;
    `count` is the question's latest success count of `group_size`.
    """

    place: Place
    question: str | None = None
    prompt: str | Sequence[Mapping[str, str]] | None = None
    text: str | None = None
    turns: Sequence[Mapping[str, str]] | None = None
    token_ids: np.ndarray | None = None
    log_probs: np.ndarray | None = None
    mask: np.ndarray | None = None
    tokenizer: str | None = None
    prompt_hash: int = 0
    source: str | None = None
    behaviour: str = MEASURED
    temperature: float | None = None
    birth_step: int = 0
    count: int | None = None
    group_size: int = 0
    provenance: Provenance = field(default_factory=Provenance)
    tools: str | None = None  # fingerprint of those that answered it, as in `core.buffer.Origin`


@dataclass(frozen=True)
class Columns:
    """Names of columns that differ from those looked for; None: the usual ones."""

    question: str | None = None
    prompt: str | None = None
    response: str | None = None


def parse(row: Mapping[str, Any], place: Place, columns: Columns) -> Trace:
    """The trace of a row; raises BadTrace with the reason."""
    found = {name: value for name, value in row.items() if value is not None}
    question, prompt, response, turns = _conversation(found, place, columns)
    ids = _array(found, "token_ids", np.int64, place)
    if ids is None and response is None and turns is None:
        raise place.bad(f"no response: none of messages, token_ids, {', '.join(RESPONSE_KEYS)}")
    if question is None and prompt is None:
        raise place.bad("nothing names its question: no question_id, no prompt")
    return Trace(place, question, prompt, response, turns, **_tokens(found, ids, place), **_known(found, place))


def _conversation(row: Mapping[str, Any], place: Place, columns: Columns) -> tuple:
    """Id of the question, prompt, response text and response turns, each None where the row has none."""
    info = row.get("extra_info")
    info_id = info.get("question_id") if isinstance(info, Mapping) else None
    question = _first(row, (columns.question,) if columns.question else QUESTION_KEYS) or info_id
    prompt = _first(row, (columns.prompt,) if columns.prompt else PROMPT_KEYS)
    response = _first(row, (columns.response,) if columns.response else RESPONSE_KEYS)
    if (whole := _first(row, CONVERSATION_KEYS)) is not None:
        prompt, response = split(_messages(whole, place, "messages"))
    if prompt and not isinstance(prompt, str):
        prompt = _messages(prompt, place, "prompt")
    turns = None if response is None or isinstance(response, str) else _turns(response, place)
    if turns is not None:
        response, turns = (turns[0]["content"], None) if len(turns) == 1 else (None, turns)
    return _id(question), prompt or None, _sound(response, "the response", place), turns


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if name in row), None)


def _id(value: Any) -> str | None:
    """A question's id; none is a list or a mapping, as a column `question` of messages has them."""
    return None if value is None or isinstance(value, Mapping | list | tuple | np.ndarray) else str(value)


def _messages(value: Any, place: Place, what: str) -> list[dict[str, str]]:
    try:
        return plain(value)
    except ValueError as error:
        raise place.bad(f"{what} {error}") from None


def _turns(value: Any, place: Place) -> list[dict[str, str]]:
    found = _messages(value, place, "response") if value else []
    if not takes_turns(found):
        raise place.bad("a response is one assistant message after its prompt, or several with a tool's between them")
    for message in found:
        _sound(message["content"], "the response", place)
    return found


def _sound(text: str | None, what: str, place: Place) -> str | None:
    """Text that UTF-8 can write: JSON may hold half of a surrogate pair, which no tokenizer and no file takes."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise place.bad(f"{what} holds half a character ({shown(text[error.start])}, a lone surrogate)") from None
    return text


def _tokens(row: Mapping[str, Any], ids: np.ndarray | None, place: Place) -> dict[str, Any]:
    """Ids with what belongs to each of them; {} for a trace that is text."""
    if ids is None:
        return {}
    if not len(ids) or ids.min() < 0 or ids.max() > MAX_ID:
        raise place.bad("token_ids must be a list of ids 0..2^31-1, at least one")
    log_probs, mask = _array(row, "log_probs", np.float32, place), _array(row, "mask", bool, place)
    for name, values in (("log_probs", log_probs), ("mask", mask)):
        if values is not None and len(values) != len(ids):
            raise place.bad(f"{len(values)} {name} and {len(ids)} token_ids")
    if mask is not None and not mask.any():
        raise place.bad("the mask has no token that the model wrote")
    own = log_probs if mask is None or log_probs is None else log_probs[mask]
    if own is not None and not (np.isfinite(own).all() and own.max() <= LOG_PROB_SLACK):
        raise place.bad("log_probs must be finite and not above 0")
    return {"token_ids": ids.astype(np.int32), "log_probs": log_probs, "mask": mask}


def _known(row: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """What an exported row says besides (`experience.table`), checked."""
    successes, size = (_integer(row, name, 0, place, high=MAX_COUNT) for name in ("group_successes", "group_size"))
    if successes > size:
        raise place.bad(f"{successes} group_successes of group_size {size}")
    group = _integer(row, "group", -1, place, low=-1)
    behaviour = _text(row, "behaviour", place) or MEASURED
    if behaviour not in (MEASURED, SCORED, ONE):
        raise place.bad(f"behaviour must be {MEASURED}, {SCORED} or {ONE}; got {shown(behaviour)}")
    return {
        "provenance": Provenance(group, successes, size, _number(row, "advantage", 0.0, place)),
        "tokenizer": _text(row, "tokenizer", place),
        "prompt_hash": _hash(row, place),
        "source": _text(row, "source", place),
        "tools": _text(row, "tools", place),
        "behaviour": behaviour,
        "temperature": _number(row, "temperature", None, place, low=0.0),
        "birth_step": _integer(row, "birth_step", 0, place),
        "count": _integer(row, "latest_count", None, place, high=MAX_COUNT),
        "group_size": _integer(row, "state_group_size", size, place, high=MAX_COUNT),
    }


def _hash(row: Mapping[str, Any], place: Place) -> int:
    try:
        return int(row.get("prompt_hash", "0"), 16)
    except (TypeError, ValueError):
        raise place.bad(f"prompt_hash must be hexadecimal digits; got {shown(row['prompt_hash'])}") from None


def _text(row: Mapping[str, Any], name: str, place: Place) -> str | None:
    value = row.get(name)
    if value is not None and not (isinstance(value, str) and len(value) <= MAX_NAME):
        raise place.bad(f"{name} must be text of at most {MAX_NAME} characters; got {shown(value)}")
    return _sound(value, name, place)


def _number(
    row: Mapping[str, Any], name: str, default: float | None, place: Place, low: float = -math.inf
) -> float | None:
    value = row.get(name, default)
    if value is default:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value) or value < low:
        raise place.bad(f"{name} must be a number{'' if low < 0 else f' from {low:g} on'}; got {shown(value)}")
    return float(value)


def _integer(
    row: Mapping[str, Any], name: str, default: int | None, place: Place, low: int = 0, high: int = MAX_ID
) -> int | None:
    value = _number(row, name, default, place)
    if value is default:
        return default
    if value != int(value) or not low <= value <= high:
        raise place.bad(f"{name} must be an integer in {low}..{high}; got {shown(row[name])}")
    return int(value)


def _array(row: Mapping[str, Any], name: str, dtype: type, place: Place) -> np.ndarray | None:
    """A flat list as an array; other kinds are not converted: 1.5 is no id, 1 is no truth value."""
    if name not in row:
        return None
    kinds = {np.int64: "iu", np.float32: "fiu", bool: "b"}[dtype]
    try:
        values = np.asarray(row[name])
    except ValueError:
        values = np.empty((0, 0))
    if values.ndim != 1 or values.dtype.kind not in kinds:
        raise place.bad(f"{name} must be a flat list of {np.dtype(dtype).name}; got {shown(row[name])}")
    return values.astype(dtype)
