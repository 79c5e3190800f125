"""The experience buffer: questions solved in part and their trajectories (E and S of the paper's Alg. 1).

Columnar: a question is an index into question columns, a trajectory a row of row columns, its tokens a slice of a
segment. Python objects exist per question (its id and its index), never per trajectory. Nothing here needs Ray, verl or
a model, and every draw is a function of (state, generator), where the state survives `state`/`restore` exactly.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np

from recipe.exgrpo.core.buffer.columns import SEGMENT_TOKENS
from recipe.exgrpo.core.buffer.eviction import REASONS, over_bound
from recipe.exgrpo.core.buffer.questions import QuestionIndex
from recipe.exgrpo.core.buffer.records import (
    Candidates,
    CheckedResponse,
    Origin,
    Provenance,
    Response,
    Trajectory,
    digest,
    prompt_hash,
)
from recipe.exgrpo.core.buffer.state import NONE, STATE_VERSION, Snapshot, check_placement, check_state, spans
from recipe.exgrpo.core.buffer.trajectories import SCORES, TrajectoryStore
from recipe.exgrpo.core.config import BufferConfig

logger = logging.getLogger(__name__)

UNKNOWN = Provenance()
CANDIDATE_COLUMNS = {
    "row": "serial", "question": "question", "group": "group", "successes": "group_successes",
    "group_size": "group_size", "birth_step": "birth_step", "use_count": "use_count", "length": "length",
    "reward": "reward", "advantage": "advantage", "entropy": "entropy", "nll": "nll", "drift": "drift",
}  # fmt: skip


class ExperienceBuffer:
    """Trajectories by question, and the questions by latest success count of `group_size` rollouts.

    A question is eligible for replay when its latest count is in 1..K-1, it is not retired or cooling down, and it has
    a trajectory. `record`, `add`, `draw`, `rows`, `trajectory` and `bucket_sizes` cost the same at any size of the
    buffer. `origin` is what `add` stamps on new trajectories.
    """

    def __init__(self, group_size: int, config: BufferConfig | None = None, *, segment_tokens: int = SEGMENT_TOKENS):
        if group_size < 2:
            raise ValueError(f"group_size must be at least 2, or no question can be solved in part; got {group_size}.")
        self.config = config or BufferConfig()
        self.origin = Origin()
        self.evicted = dict.fromkeys(REASONS, 0)
        self._questions = QuestionIndex(group_size)
        self._store = TrajectoryStore(self.config.log_prob_dtype, segment_tokens)
        self._origins: dict[Origin, int] = {}
        self._next_group = 0

    @property
    def group_size(self) -> int:
        return self._questions.group_size

    # ---- questions

    def record(self, question: str, count: int) -> None:
        """Set the latest success count of a question, 0 <= count <= K-1.

        0 makes it ineligible and keeps its trajectories. Raises ValueError for other counts and for a retired question.
        """
        if not 0 <= count < self.group_size:
            raise ValueError(
                f"success count of question {question!r} must be in 0..{self.group_size - 1}; got {count} "
                "(all solved: retire it)."
            )
        q = self._open(question, "recorded")
        if self._questions.count(q) != count:
            self._questions.leave_bucket(q)
            self._questions.columns.count[q] = count
            self._enter_bucket(q)

    def latest_count(self, question: str) -> int | None:
        """The latest success count; None for a question never recorded, and for a retired one."""
        q = self._questions.index.get(question)
        count = NONE if q is None else self._questions.count(q)
        return None if count == NONE else count

    def retire(self, question: str) -> None:
        """Move a question from E to S (all K solved): its trajectories are freed. Retiring twice changes nothing."""
        q = self._open(question)
        if q not in self._questions.retired:
            self._questions.forget(q)
            self._store.drop_question(q)
            self._questions.retired[q] = None

    def unretire(self, question: str) -> None:
        """Take a question out of S; it has no count and no trajectory. Raises KeyError when it is not retired."""
        if not self.is_retired(question):
            raise KeyError(f"question {question!r} is not retired")
        del self._questions.retired[self._questions.index[question]]

    def is_retired(self, question: str) -> bool:
        return self._questions.index.get(question, NONE) in self._questions.retired

    @property
    def retired(self) -> list[str]:
        """The set S, in order of retirement."""
        return [self._questions.names[q] for q in self._questions.retired]

    def discard(self, question: str) -> None:
        """Forget a question entirely, for one that left the dataset. Unknown questions are ignored."""
        q = self._questions.index.get(question)
        if q is not None:
            self._questions.discard(q)
            self._store.drop_question(q)

    def questions(self) -> Iterator[str]:
        """Every question that was recorded, retired or given a trajectory, in no particular order."""
        return iter(self._questions.index)

    def bucket_sizes(self) -> np.ndarray:
        """Eligible questions per latest success count, int64 [K + 1]; 0 and K are always empty. O(K)."""
        return self._questions.buckets.sizes.copy()

    def draw(self, count: int, n: int, rng: np.random.Generator) -> list[str]:
        """`n` distinct questions of bucket `count`, uniform without replacement, in O(n).

        Raises ValueError when the bucket has fewer.
        """
        names, buckets = self._questions.names, self._questions.buckets
        if not 0 <= count <= self.group_size:
            raise ValueError(f"bucket {count} does not exist; success counts are 0..{self.group_size}.")
        if not 0 <= n <= buckets.sizes[count]:
            raise ValueError(f"cannot draw {n} questions from bucket {count}, which has {buckets.sizes[count]}.")
        return [names[q] for q in buckets.draw(count, n, rng).tolist()] if n else []

    # ---- trajectories

    def add(
        self,
        question: str,
        response: Response,
        reward: float,
        step: int,
        *,
        provenance: Provenance = UNKNOWN,
        keep_prompt: bool = False,
        keep_duplicates: bool = False,
    ) -> bool:
        """Store a trajectory that was collected at `step`. False when the same ids under one mask are stored already, which is
        checked unless `keep_duplicates`; `keep_prompt` stores the prompt's ids beside its hash.

        With `log_prob_dtype: float16` a log-prob x is kept within 2^-11 |x| + 2^-25 (so w* = pi_theta/pi_past within
        0.05 % for |x| <= 1, 0.8 % at x = -16). Raises ValueError naming the question for a retired question, ragged or
        empty input, negative ids, log-probs under the mask that are not finite (float16: below -65504) or above 0, a mask
        without a true entry, a group that `new_group` has not made, and a reward that is not finite.
        """
        checked = CheckedResponse.of(question, response, self._store.log.log_prob_dtype)
        self._check_values(question, reward, provenance)
        q = self._open(question, "given a trajectory")
        hashed = digest(checked.token_ids, checked.mask)
        if not keep_duplicates and self._store.holds(q, checked, hashed):
            return False
        prompt = prompt_hash(checked.prompt_ids)
        origin = self._origins.setdefault(self.origin, len(self._origins))
        stored = checked if keep_prompt else checked.without_prompt()
        at = self._store.append(q, stored, reward, step, hashed, origin)
        self._store.set_provenance(at, prompt, provenance)
        if self._store.count(q) == 1:
            self._enter_bucket(q)
        return True

    def new_group(self) -> int:
        """The id of a group that is about to be collected; ids ascend over the life of the buffer, restarts included."""
        self._next_group += 1
        return self._next_group - 1

    def candidates(self, rows: Sequence[int] | np.ndarray | None = None) -> Candidates:
        """Columns of all stored trajectories in insertion order, or of the handles `rows` in their order.

        O(everything ever stored and not yet squeezed out) without `rows`. KeyError when one of `rows` is gone.
        """
        store = self._store
        at = np.flatnonzero(store.alive()) if rows is None else store.find(rows)
        columns = {name: getattr(store.rows, column)[at] for name, column in CANDIDATE_COLUMNS.items()}
        return Candidates(**columns, has_prompt=store.rows.prompt_length[at] > 0)

    def rows(self, question: str) -> np.ndarray:
        """Handles of a question's trajectories in insertion order, int64; empty for an unknown question."""
        q = self._questions.index.get(question)
        return np.empty(0, np.int64) if q is None else self._store.rows.serial[self._store.positions(q)]

    def question_of(self, row: int) -> str:
        """The question of the trajectory with handle `row`; KeyError when it is gone."""
        return self._questions.names[self._store.rows.question[self._store.find(row)[0]]]

    def trajectory(self, row: int) -> Trajectory:
        """A copy of the trajectory with handle `row`; KeyError when it is gone."""
        rows, at = self._store.rows, int(self._store.find(row)[0])
        ids, log_probs = self._store.span(at)
        start = int(rows.prompt_length[at])
        mask = ~np.isnan(log_probs[start:])
        return Trajectory(
            row=int(row),
            question=self._questions.names[rows.question[at]],
            token_ids=ids[start:].copy(),
            log_probs=np.where(mask, log_probs[start:], 0).astype(np.float32),
            mask=mask,
            reward=float(rows.reward[at]),
            birth_step=int(rows.birth_step[at]),
            use_count=int(rows.use_count[at]),
            prompt_ids=ids[:start].copy(),
            prompt_hash=int(rows.prompt_hash[at]),
            **{name: float(getattr(rows, name)[at]) for name in SCORES},
            provenance=Provenance(
                group=int(rows.group[at]),
                successes=int(rows.group_successes[at]),
                size=int(rows.group_size[at]),
                advantage=float(rows.advantage[at]),
            ),
            origin=list(self._origins)[rows.origin[at]],
        )

    def mark_scored(
        self,
        rows: Sequence[int] | np.ndarray,
        entropy: Sequence[float] | np.ndarray,
        nll: Sequence[float] | np.ndarray | None = None,
        drift: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        """Remember scores [n] of the trajectories `rows` [n]; those not given keep their values.

        `entropy` and `nll` are means per token in nats, `drift` the mean squared change of the log-probs. KeyError when a
        trajectory is gone, ValueError when the numbers differ.
        """
        at = self._store.find(rows)
        for name, values in zip(SCORES, (entropy, nll, drift), strict=True):
            if values is None:
                continue
            values = np.atleast_1d(np.asarray(values, np.float32))
            if values.shape != at.shape:
                raise ValueError(f"mark_scored got {at.size} rows and {values.size} values of {name}.")
            getattr(self._store.rows, name)[at] = values

    def mark_used(self, rows: int | Sequence[int] | np.ndarray, step: int) -> None:
        """Count one use of each of these trajectories at `step`, and start their questions' cooldowns.

        KeyError when one is gone; then nothing is counted.
        """
        at = self._store.find(rows)
        self._store.rows.use_count[at] += 1
        if self.config.cooldown_steps:
            self._questions.cool(self._store.rows.question[at].tolist(), step + self.config.cooldown_steps + 1)

    def mark_drawn(self, question: str, step: int) -> None:
        """Count one use of every trajectory of a question that was drawn at `step`, and start its cooldown.

        For a control that draws questions and trains on none of their trajectories (`inject: false`): whichever would have
        been used, bounds and cooldown then act on it. Unknown questions are ignored.
        """
        rows = self.rows(question)
        if len(rows):
            self.mark_used(rows, step)

    def drop(self, rows: Sequence[int] | np.ndarray, reason: str) -> int:
        """Evict these trajectories, counted under `reason`, one of REASONS; returns how many. KeyError when one is gone."""
        if reason not in REASONS:
            raise ValueError(f"a trajectory is evicted for one of {', '.join(REASONS)}; got {reason!r}.")
        count = self._evict(self._mask(rows))
        self.evicted[reason] += count
        return count

    def enforce_limits(self, step: int) -> dict[str, int]:
        """Call once at the end of `step`, after bookkeeping: evictions by reason (age, reuse, per_question, bytes).

        Also readies the buffer for the plan of `step + 1`: questions whose cooldown ends re-enter their buckets (one
        replayed at step s with cooldown c is next eligible at s + c + 1), and some dead space is compacted. A question
        whose last trajectory goes is ineligible and keeps its count.
        """
        counts = {reason: self._evict(over_bound(self._store, self.config, reason, step)) for reason in REASONS}
        for reason, count in counts.items():
            self.evicted[reason] += count
        for q in self._questions.end_cooldowns(step + 1):
            self._enter_bucket(q)
        self._store.compact()
        return counts

    def drop_trajectories(self, rows: Sequence[int] | np.ndarray | None = None) -> int:
        """Drop these trajectories, or all, which counts as no eviction; counts and the retired set stay.

        Returns how many; KeyError when one of `rows` is gone.
        """
        return self._evict(self._store.alive() if rows is None else self._mask(rows))

    @property
    def nbytes(self) -> int:
        """Bytes of the live trajectories: tokens, log-probs and row columns. This is what `max_bytes` bounds."""
        return self._store.nbytes

    def bytes_of(self, tokens: int) -> int:
        """Bytes of a trajectory of so many tokens, its stored prompt's among them."""
        return self._store.bytes_of(tokens)

    def stats(self, step: int) -> dict[str, float]:
        """Figures for metrics and `inspect`; ages in steps before `step`, over live trajectories (0 without any)."""
        store, alive = self._store, self._store.alive()
        ages = step - store.rows.live("birth_step")[alive]
        reuse = store.rows.live("use_count")[alive]
        some = len(ages) > 0
        figures = {
            "questions": store.live_questions,
            "trajectories": store.live_rows,
            "bytes": self.nbytes,
            "allocated_bytes": store.allocated_bytes + self._questions.columns.nbytes,
            "imported": self._imported(alive),
            "retired": len(self._questions.retired),
            "cooling": self._questions.cooling(),
            "compacted_tokens": store.compacted_tokens,
            "age_steps_mean": ages.mean() if some else 0,
            "age_steps_max": ages.max() if some else 0,
            "reuse_mean": reuse.mean() if some else 0,
            "reuse_max": reuse.max() if some else 0,
        }
        figures |= {f"bucket/{k}": self._questions.buckets.sizes[k] for k in range(1, self.group_size)}
        return {name: float(value) for name, value in figures.items()}

    # ---- state

    def snapshot(self) -> Snapshot:
        """A frozen view: small columns are copied, tokens shared (used cells never change)."""
        rows, placement, segments = self._store.frozen()
        meta = {
            "version": STATE_VERSION,
            "group_size": self.group_size,
            "log_prob_dtype": self._store.log.log_prob_dtype.name,
            "next_serial": self._store.next_serial,
            "next_group": self._next_group,
            "origins": [asdict(origin) for origin in self._origins],
            "evicted": dict(self.evicted),
            "compacted_tokens": self._store.compacted_tokens,
        }
        return Snapshot(rows, self._questions.arrays(), list(self._questions.names), meta, placement, segments)

    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        """Everything, as arrays and a JSON-able dict; the token arrays are copies, one after the other in row order."""
        frozen = self.snapshot()
        ids, log_probs = frozen.tokens(np.arange(len(frozen.rows["row_serial"])))
        return frozen.rows | frozen.question_arrays() | {"token_ids": ids, "log_probs": log_probs}, frozen.meta

    @classmethod
    def restore(
        cls,
        arrays: dict[str, np.ndarray],
        meta: dict,
        pieces: Sequence[tuple[np.ndarray, np.ndarray]],
        placement: tuple[np.ndarray, np.ndarray],
        config: BufferConfig | None = None,
    ) -> "ExperienceBuffer":
        """The buffer that `state` described: same handles, and the same next draws from the same generator.

        The tokens come in (ids, log_probs) `pieces`, which the buffer takes over without a copy; `placement` gives each row's
        piece and its offset there, and tokens of a piece that no row covers are dead space. The log-prob dtype of `config`
        applies (float32 to float16 rounds). Raises ValueError when the state contradicts itself.
        """
        check_state(arrays, meta)
        check_placement(spans(arrays), pieces, *placement)
        buffer = cls(meta["group_size"], config)
        buffer._questions.fill(arrays)
        buffer._store.fill(arrays, pieces, *placement, len(buffer._questions.names))
        buffer._store.next_serial = int(meta["next_serial"])
        buffer._store.compacted_tokens = int(meta["compacted_tokens"])
        buffer._next_group = int(meta["next_group"])
        buffer._origins = {Origin(**origin): i for i, origin in enumerate(meta["origins"])}
        buffer.evicted |= {reason: int(meta["evicted"].get(reason, 0)) for reason in REASONS}
        return buffer

    def change_group_size(self, group_size: int) -> None:
        """Scale the success counts to a new K; those solved in part stay within 1..K-1."""
        old = self.group_size
        moved = self._questions.change_group_size(group_size)
        for q in moved:
            self._enter_bucket(q)
        logger.warning("success counts of %d questions were scaled from K=%d to K=%d", len(moved), old, group_size)

    # ---- private

    def _imported(self, alive: np.ndarray) -> int:
        """Live trajectories (bool [rows]) that no rollout of this run made."""
        foreign = np.array([origin.source != "rollout" for origin in self._origins], bool)
        return int(np.count_nonzero(foreign[self._store.rows.live("origin")[alive]])) if foreign.any() else 0

    def _open(self, question: str, what: str | None = None) -> int:
        """Index of a question; ValueError for a retired one that is to be `what`."""
        q = self._questions.open(question)
        if what and q in self._questions.retired:
            raise ValueError(f"question {question!r} is retired and cannot be {what}; unretire it first.")
        self._store.open_question(q)
        return q

    def _enter_bucket(self, q: int) -> None:
        self._questions.enter_bucket(q, self._store.count(q))

    def _mask(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The handles `rows` as a mask of row positions, bool."""
        mask = np.zeros(self._store.rows.size, bool)
        mask[self._store.find(rows)] = True
        return mask

    def _check_values(self, question: str, reward: float, provenance: Provenance) -> None:
        if not math.isfinite(reward):
            raise ValueError(f"trajectory of question {question!r}: the reward must be finite; got {reward}.")
        if not NONE <= provenance.group < self._next_group or not math.isfinite(provenance.advantage):
            raise ValueError(
                f"trajectory of question {question!r}: its group must come from new_group() and its advantage be finite; "
                f"got {provenance}."
            )

    def _evict(self, mask: np.ndarray | None) -> int:
        """Drop the rows under `mask`; a question without any left is not eligible. Returns how many rows went."""
        if mask is None:
            return 0
        for q in self._store.drop(mask):
            self._questions.leave_bucket(q)
        return int(np.count_nonzero(mask))
