"""What goes into the experience buffer and what comes out of it: responses, trajectories, and columns of candidates."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

MAX_ID = 2**31 - 1
LOG_PROB_SLACK = 1e-2  # log-softmax may round to a hair above 0
NO_IDS = np.empty(0, np.int32)
NO_IDS.flags.writeable = False


@dataclass(frozen=True)
class Response:
    """One response on its way into the store, which makes its own copies.

    `token_ids` integers [L] and `log_probs` [L] in nats, those of the behaviour policy pi_old in the training engine; `mask`
    bool [L] is true for the tokens that the model wrote (None: all of them); `prompt_ids` integers [P] of the prompt that it
    answers.
    """

    token_ids: Sequence[int] | np.ndarray
    log_probs: Sequence[float] | np.ndarray
    mask: Sequence[bool] | np.ndarray | None = None
    prompt_ids: Sequence[int] | np.ndarray | None = None


@dataclass(frozen=True)
class Provenance:
    """The group that a trajectory was collected in: its id from `ExperienceBuffer.new_group` (-1: none), `successes` = k of
    its `size` = K trajectories (fresh and replayed), and the advantage that the trajectory had there."""

    group: int = -1
    successes: int = 0
    size: int = 0
    advantage: float = 0.0


@dataclass(frozen=True)
class Origin:
    """What produced a trajectory: `source` is `rollout` or the name of an import, `chat_template` the SHA-256 of the template
    ("" if not known), `temperature` that of sampling; `behaviour` says whose log-probs are stored: `measured` of the policy
    that wrote it, `scored` of the policy that a run started with, `one` of none (pi_past = 1); `tools` is the fingerprint of
    the tools that answered it ("": none, or not known)."""

    source: str = "rollout"
    chat_template: str = ""
    temperature: float = 1.0
    behaviour: str = "measured"
    tools: str = ""


@dataclass(frozen=True)
class Trajectory:
    """A copy of one stored trajectory.

    `row` is its handle, valid until the trajectory is evicted or its question retired. `token_ids` int32 [L] is the response;
    `mask` bool [L] is true where the model wrote the token, and `log_probs` float32 [L] are those of the behaviour policy
    pi_past (training-engine numerics) there, 0.0 elsewhere. `prompt_ids` int32 [P] is empty unless stored; `prompt_hash` is 0
    without a prompt. `entropy` and `nll` (nats per token) and `drift` (mean squared change of the log-probs) are nan until
    scored.
    """

    row: int
    question: str
    token_ids: np.ndarray
    log_probs: np.ndarray
    mask: np.ndarray
    reward: float
    birth_step: int
    use_count: int = 0
    prompt_ids: np.ndarray = field(default_factory=NO_IDS.copy)
    prompt_hash: int = 0
    entropy: float = math.nan
    nll: float = math.nan
    drift: float = math.nan
    provenance: Provenance = Provenance()
    origin: Origin = Origin()

    @property
    def turns(self) -> int:
        """Chat turns as verl counts them (`num_turns`): the prompt, and every run of tokens that one side wrote."""
        return 2 + int(np.count_nonzero(self.mask[1:] != self.mask[:-1]))

    @property
    def tool_tokens(self) -> int:
        """Response tokens that the model did not write."""
        return int(np.count_nonzero(~self.mask))


@dataclass(frozen=True)
class Candidates:
    """Columns of n stored trajectories, numpy arrays [n] that the reader may keep.

    `row` (int64) are handles, `question` (int32) indices that are equal for trajectories of one question; `length` counts
    response tokens. `entropy`, `nll` and `drift` (float32) are nan until scored; `has_prompt` says whether prompt ids are
    stored.
    """

    row: np.ndarray
    question: np.ndarray
    group: np.ndarray
    successes: np.ndarray
    group_size: np.ndarray
    birth_step: np.ndarray
    use_count: np.ndarray
    length: np.ndarray
    reward: np.ndarray
    advantage: np.ndarray
    entropy: np.ndarray
    nll: np.ndarray
    drift: np.ndarray
    has_prompt: np.ndarray

    def age(self, step: int) -> np.ndarray:
        """Steps between collection and `step`."""
        return step - self.birth_step

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: slice | np.ndarray | Sequence[int]) -> "Candidates":
        """Those at `index`: a slice, a boolean mask, or positions."""
        index = index if isinstance(index, slice) else np.asarray(index)
        if not isinstance(index, slice) and not index.size:
            index = index.astype(np.int64)  # an empty list has no integer dtype
        return Candidates(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})


def prompt_hash(prompt_ids: Sequence[int] | np.ndarray | None) -> int:
    """64-bit BLAKE2b of the int32 prompt ids; 0 without a prompt."""
    return 0 if prompt_ids is None or not len(prompt_ids) else digest(np.ascontiguousarray(prompt_ids, np.int32))


def digest(ids: np.ndarray, mask: np.ndarray | None = None) -> int:
    """64-bit BLAKE2b of contiguous int32 ids, and of whose they are where `mask` (bool [L]) leaves some to others.

    What a tool said and the same words made up by the model are different responses.
    """
    hashed = blake2b(ids.data, digest_size=8)
    if mask is not None and not mask.all():
        hashed.update(np.packbits(mask).data)
    return int.from_bytes(hashed.digest(), "little")


class CheckedResponse(NamedTuple):
    """A response in the form of the store: int32 ids, float32 log-probs with nan where the model did not write the token."""

    token_ids: np.ndarray
    log_probs: np.ndarray
    prompt_ids: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        return ~np.isnan(self.log_probs)

    def span(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids and log-probs of prompt and response, in this order."""
        if not len(self.prompt_ids):
            return self.token_ids, self.log_probs
        unwritten = np.full(len(self.prompt_ids), math.nan, np.float32)
        return np.concatenate([self.prompt_ids, self.token_ids]), np.concatenate([unwritten, self.log_probs])

    def without_prompt(self) -> "CheckedResponse":
        return CheckedResponse(self.token_ids, self.log_probs, NO_IDS)

    @classmethod
    def of(cls, question: str, response: Response, dtype: np.dtype) -> "CheckedResponse":
        """Raises ValueError naming the question where `response` is ragged, empty, or outside the range of `dtype`."""
        ids, log_probs = np.asarray(response.token_ids), np.asarray(response.log_probs, np.float32)
        if ids.ndim != 1 or ids.shape != log_probs.shape or not len(ids):
            raise ValueError(
                f"trajectory of question {question!r}: expected as many integer token ids as log-probs, at least one; "
                f"got ids {ids.dtype}{list(ids.shape)} and log-probs {list(log_probs.shape)}."
            )
        written = log_probs
        if response.mask is not None:
            mask = _mask(question, response.mask, len(ids))
            written, log_probs = log_probs[mask], np.where(mask, log_probs, np.float32(math.nan))
        _check_range(question, written, dtype)
        prompt = NO_IDS if response.prompt_ids is None else _ids(question, np.asarray(response.prompt_ids))
        return cls(_ids(question, ids), log_probs, prompt)


def _ids(question: str, ids: np.ndarray) -> np.ndarray:
    if not ids.size:
        return NO_IDS
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"trajectory of question {question!r}: ids must be integers; got {ids.dtype}{list(ids.shape)}."
        )
    if ids.min() < 0 or (ids.dtype != np.int32 and ids.max() > MAX_ID):
        raise ValueError(f"trajectory of question {question!r}: token ids must fit into 0..2^31-1.")
    return np.ascontiguousarray(ids, np.int32)


def _mask(question: str, mask: Sequence[bool] | np.ndarray, length: int) -> np.ndarray:
    mask = np.asarray(mask, bool)
    if mask.shape != (length,) or not mask.any():
        raise ValueError(
            f"trajectory of question {question!r}: the mask needs one entry for each of {length} tokens, one of them true."
        )
    return mask


def _check_range(question: str, log_probs: np.ndarray, dtype: np.dtype) -> None:
    low, high = log_probs.min(), log_probs.max()  # nan if any is nan, and then no comparison holds
    if not (low >= np.finfo(dtype).min and high <= LOG_PROB_SLACK):
        raise ValueError(
            f"trajectory of question {question!r}: log-probs must be finite, not above 0 and within {dtype.name}; "
            f"they span {low} to {high}."
        )
