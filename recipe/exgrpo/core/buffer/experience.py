"""The experience buffer: questions solved in part and their successful trajectories (E and S of the paper's Alg. 1).

Columnar: a question is an index into question columns, a trajectory a row of row columns, its tokens a slice of a
segment. Python objects exist per question (its id and its index), never per trajectory. Nothing here needs Ray, verl or
a model, and every draw is a function of (state, generator), where the state survives `state`/`from_state` exactly.
"""

import heapq
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from recipe.exgrpo.core.buffer.bucket_index import BucketIndex
from recipe.exgrpo.core.buffer.columns import SEGMENT_TOKENS, Columns
from recipe.exgrpo.core.buffer.eviction import REASONS, doomed
from recipe.exgrpo.core.buffer.state import NONE, STATE_VERSION, Snapshot, check_placement, check_state, decode_names
from recipe.exgrpo.core.buffer.trajectories import TrajectoryStore
from recipe.exgrpo.core.config import BufferConfig

logger = logging.getLogger(__name__)

QUESTION_DTYPES = {"count": "i2", "place": "i4", "cool_until": "i4"}
MAX_ID = 2**31 - 1
LOG_PROB_SLACK = 1e-2  # log-softmax may round to a hair above 0


@dataclass(frozen=True)
class Trajectory:
    """A copy of one stored trajectory.

    `row` is its handle, valid until the trajectory is evicted or its question retired. `token_ids` int32 [L] are the
    response tokens, `log_probs` float32 [L] those of the behaviour policy pi_past (training-engine numerics). `entropy`
    is the mean token entropy in nats when it was last scored, nan before.
    """

    row: int
    question: str
    token_ids: np.ndarray
    log_probs: np.ndarray
    reward: float
    birth_step: int
    use_count: int
    entropy: float


class ExperienceBuffer:
    """Successful trajectories by question, and the questions by latest success count of `group_size` rollouts.

    A question is eligible for replay when its latest count is in 1..K-1, it is not retired or cooling down, and it has
    a trajectory. `record`, `add`, `draw`, `rows`, `trajectory` and `bucket_sizes` cost the same at any size of the
    buffer. One thread may use it; a `snapshot` may be read by another meanwhile.
    """

    def __init__(self, group_size: int, config: BufferConfig | None = None, *, segment_tokens: int = SEGMENT_TOKENS):
        if group_size < 2:
            raise ValueError(f"group_size must be at least 2, or no question can be solved in part; got {group_size}.")
        self.group_size = group_size
        self.config = config or BufferConfig()
        self._store = TrajectoryStore(self.config.log_prob_dtype, segment_tokens)
        self._questions = Columns(QUESTION_DTYPES)
        self._lowest_log_prob = float(np.finfo(self.config.log_prob_dtype).min)
        self._buckets = BucketIndex(group_size)
        self._index: dict[str, int] = {}
        self._names: list[str] = []  # "" marks an index that a discarded question gave back
        self._free: list[int] = []
        self._retired: dict[int, None] = {}  # ordered by time of retirement
        self._cooling: list[tuple[int, int]] = []  # heap of (first eligible step, question)
        self.evicted = dict.fromkeys(REASONS, 0)

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
        q = self._index_of(question, "recorded")
        if self._questions.count[q] != count:
            self._leave_bucket(q)
            self._questions.count[q] = count
            self._enter_bucket(q)

    def latest_count(self, question: str) -> int | None:
        """The latest success count; None for a question never recorded, and for a retired one."""
        q = self._index.get(question)
        count = NONE if q is None else int(self._questions.count[q])
        return None if count == NONE else count

    def retire(self, question: str) -> None:
        """Move a question from E to S (all K solved): its trajectories are freed. Retiring twice changes nothing."""
        q = self._index_or_new(question)
        if q in self._retired:
            return
        self._leave_bucket(q)
        self._store.drop_question(q)
        self._questions.count[q] = self._questions.cool_until[q] = NONE
        self._retired[q] = None

    def unretire(self, question: str) -> None:
        """Take a question out of S; it has no count and no trajectory. Raises KeyError when it is not retired."""
        if not self.is_retired(question):
            raise KeyError(f"question {question!r} is not retired")
        del self._retired[self._index[question]]

    def is_retired(self, question: str) -> bool:
        return self._index.get(question, NONE) in self._retired

    @property
    def retired(self) -> list[str]:
        """The set S, in order of retirement."""
        return [self._names[q] for q in self._retired]

    def discard(self, question: str) -> None:
        """Forget a question entirely, for one that left the dataset. Unknown questions are ignored."""
        q = self._index.get(question)
        if q is None:
            return
        self._leave_bucket(q)
        self._store.drop_question(q)
        self._questions.count[q] = self._questions.cool_until[q] = NONE
        self._retired.pop(q, None)
        del self._index[question]
        self._names[q] = ""
        self._free.append(q)

    def questions(self) -> Iterator[str]:
        """Every question that was recorded, retired or given a trajectory, in no particular order."""
        return iter(self._index)

    def bucket_sizes(self) -> np.ndarray:
        """Eligible questions per latest success count, int64 [K + 1]; 0 and K are always empty. O(K)."""
        return self._buckets.sizes.copy()

    def draw(self, count: int, n: int, rng: np.random.Generator) -> list[str]:
        """`n` distinct questions of bucket `count`, uniform without replacement, in O(n).

        Raises ValueError when the bucket has fewer.
        """
        if not 0 <= count <= self.group_size:
            raise ValueError(f"bucket {count} does not exist; success counts are 0..{self.group_size}.")
        if not 0 <= n <= self._buckets.sizes[count]:
            raise ValueError(f"cannot draw {n} questions from bucket {count}, which has {self._buckets.sizes[count]}.")
        names = self._names
        return [names[q] for q in self._buckets.draw(count, n, rng).tolist()] if n else []

    # ---- trajectories

    def add(self, question: str, token_ids, log_probs, reward: float, step: int) -> bool:
        """Store a trajectory: integer ids [L], log-probs [L] in nats, L >= 1. False when it is stored already.

        With `log_prob_dtype: float16` a log-prob x is kept within 2^-11 |x| + 2^-25 (so w* = pi_theta/pi_past within
        0.05 % for |x| <= 1, 0.8 % at x = -16). Raises ValueError naming the question for a retired question, ragged or
        empty input, negative ids, log-probs that are not finite (float16: below -65504) or above 0, and a reward that
        is not finite.
        """
        ids, log_probs = self._checked(question, token_ids, log_probs, reward)
        q = self._index_of(question, "given a trajectory")
        digest = int.from_bytes(blake2b(ids.data, digest_size=8).digest(), "little")
        if self._store.holds(q, ids, digest):
            return False
        self._store.append(q, ids, log_probs, digest, reward, step)
        if self._store.count(q) == 1:
            self._enter_bucket(q)
        return True

    def rows(self, question: str) -> np.ndarray:
        """Handles of a question's trajectories in insertion order, int64; empty for an unknown question."""
        q = self._index.get(question)
        return np.empty(0, np.int64) if q is None else self._store.rows.serial[self._store.positions(q)]

    def trajectory(self, row: int) -> Trajectory:
        """A copy of the trajectory with handle `row`; KeyError when it is gone."""
        rows, at = self._store.rows, self._store.position(row)
        ids, log_probs = self._store.tokens(at)
        return Trajectory(
            row=int(row),
            question=self._names[rows.question[at]],
            token_ids=ids.copy(),
            log_probs=log_probs.astype(np.float32),
            reward=float(rows.reward[at]),
            birth_step=int(rows.birth_step[at]),
            use_count=int(rows.use_count[at]),
            entropy=float(rows.entropy[at]),
        )

    def mark_scored(self, rows: Sequence[int] | np.ndarray, entropies: Sequence[float] | np.ndarray) -> None:
        """Remember the mean token entropies [n] in nats of the trajectories `rows` [n]; KeyError when one is gone."""
        rows, entropies = np.asarray(rows, np.int64), np.asarray(entropies, np.float32)
        if rows.shape != entropies.shape:
            raise ValueError(f"mark_scored got {rows.size} rows and {entropies.size} entropies.")
        self._store.rows.entropy[[self._store.position(row) for row in rows.tolist()]] = entropies

    def mark_used(self, row: int, step: int) -> None:
        """Count one replay of a trajectory at `step`, and start its question's cooldown; KeyError when it is gone."""
        at = self._store.position(row)
        self._store.rows.use_count[at] += 1
        if self.config.cooldown_steps:
            q = int(self._store.rows.question[at])
            self._leave_bucket(q)
            first = step + self.config.cooldown_steps + 1
            self._questions.cool_until[q] = first
            heapq.heappush(self._cooling, (first, q))

    def enforce_limits(self, step: int) -> dict[str, int]:
        """Call once at the end of `step`, after book-keeping: evictions by reason (age, reuse, per_question, bytes).

        Also readies the buffer for the plan of `step + 1`: questions whose cooldown ends re-enter their buckets (one
        replayed at step s with cooldown c is next eligible at s + c + 1), and some dead space is compacted. A question
        whose last trajectory goes is ineligible and keeps its count.
        """
        counts = {reason: self._evict(doomed(self._store, self.config, reason, step)) for reason in REASONS}
        for reason, count in counts.items():
            self.evicted[reason] += count
        self._end_cooldowns(step + 1)
        self._store.compact()
        return counts

    def drop_trajectories(self) -> int:
        """Drop every trajectory, keeping counts and the retired set; returns how many there were."""
        return self._evict(self._store.alive())

    @property
    def nbytes(self) -> int:
        """Bytes of the live trajectories: tokens, log-probs and row columns. This is what `max_bytes` bounds."""
        return self._store.nbytes

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
            "allocated_bytes": store.allocated_bytes + self._questions.nbytes,
            "retired": len(self._retired),
            "cooling": int(np.count_nonzero(self._questions.live("cool_until") != NONE)),
            "compacted_tokens": store.compacted_tokens,
            "age_steps_mean": ages.mean() if some else 0,
            "age_steps_max": ages.max() if some else 0,
            "reuse_mean": reuse.mean() if some else 0,
            "reuse_max": reuse.max() if some else 0,
        }
        figures |= {f"bucket/{k}": self._buckets.sizes[k] for k in range(1, self.group_size)}
        return {name: float(value) for name, value in figures.items()}

    # ---- state

    def snapshot(self) -> Snapshot:
        """A frozen view for a writer in another thread: small columns are copied, tokens shared (they never change)."""
        rows, placement, segments = self._store.frozen()
        bucketed = [self._buckets.members(k).copy() for k in range(self.group_size + 1)]
        questions = {
            "question_count": self._questions.live("count").copy(),
            "question_cool_until": self._questions.live("cool_until").copy(),
            "question_free": np.array(self._free, np.int32),
            "retired": np.fromiter(self._retired, np.int32, len(self._retired)),
            "bucket_members": np.concatenate(bucketed),
            "bucket_sizes": self._buckets.sizes.copy(),
        }
        meta = {
            "version": STATE_VERSION,
            "group_size": self.group_size,
            "log_prob_dtype": self._store.log.log_prob_dtype.name,
            "next_serial": self._store.next_serial,
            "evicted": dict(self.evicted),
            "compacted_tokens": self._store.compacted_tokens,
        }
        return Snapshot(rows, questions, list(self._names), meta, placement, segments)

    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        """Everything, as arrays and a JSON-able dict; the token arrays are copies, one after the other in row order."""
        frozen = self.snapshot()
        ids, log_probs = frozen.tokens(np.arange(len(frozen.rows["row_serial"])))
        return frozen.rows | frozen.question_arrays() | {"token_ids": ids, "log_probs": log_probs}, frozen.meta

    @classmethod
    def from_state(
        cls,
        arrays: dict[str, np.ndarray],
        meta: dict,
        config: BufferConfig | None = None,
        *,
        group_size: int | None = None,
        allow_group_size_change: bool = False,
    ) -> "ExperienceBuffer":
        """The buffer that `state` described: same handles, and the same next draws from the same generator.

        Another `group_size` is refused unless allowed; then counts are scaled to it and clamped to 1..K-1. The log-prob
        dtype of `config` applies (float32 to float16 rounds). Raises ValueError when the state contradicts itself.
        """
        lengths = np.asarray(arrays["row_length"], np.int64)
        starts = np.cumsum(lengths) - lengths
        first = np.flatnonzero(np.diff(starts // SEGMENT_TOKENS, prepend=-1))  # row of each piece
        pieces = [
            (arrays["token_ids"][a:b].copy(), arrays["log_probs"][a:b].copy())
            for a, b in itertools.pairwise([*starts[first].tolist(), len(arrays["token_ids"])])
        ]
        piece = np.repeat(np.arange(len(first)), np.diff(first, append=len(lengths)))
        return cls.restore(
            arrays, meta, pieces, (piece, starts - starts[first][piece]), config,
            group_size=group_size, allow_group_size_change=allow_group_size_change,
        )  # fmt: skip

    @classmethod
    def restore(
        cls,
        arrays: dict[str, np.ndarray],
        meta: dict,
        pieces: Sequence[tuple[np.ndarray, np.ndarray]],
        placement: tuple[np.ndarray, np.ndarray],
        config: BufferConfig | None = None,
        *,
        group_size: int | None = None,
        allow_group_size_change: bool = False,
    ) -> "ExperienceBuffer":
        """`from_state` for tokens in several (ids, log_probs) pieces, which the buffer takes over without a copy.

        `placement` gives each row's piece and its offset there; tokens of a piece that no row covers are dead space.
        """
        check_state(arrays, meta)
        check_placement(arrays["row_length"], pieces, *placement)
        buffer = cls(meta["group_size"], config)
        buffer._restore_questions(arrays)
        buffer._store.fill(arrays, pieces, *placement, len(buffer._names))
        buffer._store.next_serial = int(meta["next_serial"])
        buffer._store.compacted_tokens = int(meta["compacted_tokens"])
        buffer.evicted |= {reason: int(meta["evicted"].get(reason, 0)) for reason in REASONS}
        members = arrays["bucket_members"]
        buffer._questions.place[members] = buffer._buckets.fill(members, arrays["bucket_sizes"])
        if group_size is not None and group_size != buffer.group_size:
            if not allow_group_size_change:
                raise ValueError(
                    f"experience state was made with group_size {buffer.group_size} and this run has {group_size}; "
                    "success counts would mean something else (allow the change to have them scaled)."
                )
            buffer._change_group_size(group_size)
        return buffer

    # ---- private: questions

    def _index_or_new(self, question: str) -> int:
        q = self._index.get(question)
        if q is not None:
            return q
        if not isinstance(question, str) or not question:
            raise ValueError(f"a question id must be a string that is not empty; got {question!r}.")
        if self._free:
            q = self._free.pop()
            self._names[q] = question
        else:
            q = self._store.open_question()
            self._questions.append()
            self._names.append(question)
        for name in QUESTION_DTYPES:
            getattr(self._questions, name)[q] = NONE
        self._index[question] = q
        return q

    def _index_of(self, question: str, what: str) -> int:
        q = self._index_or_new(question)
        if q in self._retired:
            raise ValueError(f"question {question!r} is retired and cannot be {what}; unretire it first.")
        return q

    def _leave_bucket(self, q: int) -> None:
        place = int(self._questions.place[q])
        if place != NONE:
            moved = self._buckets.remove(int(self._questions.count[q]), place)
            self._questions.place[moved] = place
            self._questions.place[q] = NONE

    def _enter_bucket(self, q: int) -> None:
        """Put a question that is in no bucket into its own, if it is eligible."""
        questions = self._questions
        if questions.count[q] > 0 and self._store.count(q) and questions.cool_until[q] == NONE:
            questions.place[q] = self._buckets.insert(int(questions.count[q]), q)

    def _end_cooldowns(self, step: int) -> None:
        while self._cooling and self._cooling[0][0] <= step:
            first, q = heapq.heappop(self._cooling)
            if self._questions.cool_until[q] == first:  # else replayed again, retired or discarded meanwhile
                self._questions.cool_until[q] = NONE
                self._enter_bucket(q)

    # ---- private: trajectories

    def _checked(self, question: str, token_ids, log_probs, reward: float) -> tuple[np.ndarray, np.ndarray]:
        ids, log_probs = np.asarray(token_ids), np.asarray(log_probs, np.float32)
        if ids.ndim != 1 or ids.shape != log_probs.shape or not len(ids) or ids.dtype.kind not in "iu":
            raise ValueError(
                f"trajectory of question {question!r}: expected as many integer token ids as log-probs, at least one; "
                f"got ids {ids.dtype}{list(ids.shape)} and log-probs {list(log_probs.shape)}."
            )
        if ids.min() < 0 or (ids.dtype != np.int32 and ids.max() > MAX_ID):
            raise ValueError(f"trajectory of question {question!r}: token ids must fit into 0..2^31-1.")
        low, high = log_probs.min(), log_probs.max()  # nan if any is nan, and then no comparison holds
        if not (low >= self._lowest_log_prob and high <= LOG_PROB_SLACK):
            raise ValueError(
                f"trajectory of question {question!r}: log-probs must be finite, not above 0 and within "
                f"{self._store.log.log_prob_dtype.name}; they span {low} to {high}."
            )
        if not math.isfinite(reward):
            raise ValueError(f"trajectory of question {question!r}: the reward must be finite; got {reward}.")
        return np.ascontiguousarray(ids, np.int32), log_probs

    def _evict(self, mask: np.ndarray | None) -> int:
        """Drop the rows under `mask`; a question without any left is not eligible. Returns how many rows went."""
        if mask is None:
            return 0
        for q in self._store.drop(mask):
            self._leave_bucket(q)
        return int(np.count_nonzero(mask))

    # ---- private: state

    def _restore_questions(self, arrays: dict[str, np.ndarray]) -> None:
        self._names = decode_names(arrays)
        self._index = {name: q for q, name in enumerate(self._names) if name}
        self._free = arrays["question_free"].tolist()
        self._retired = dict.fromkeys(arrays["retired"].tolist())
        columns = {"count": arrays["question_count"], "cool_until": arrays["question_cool_until"]}
        self._questions.fill(columns | {"place": NONE}, len(self._names))
        cooling = np.flatnonzero(columns["cool_until"] != NONE)
        self._cooling = list(zip(columns["cool_until"][cooling].tolist(), cooling.tolist(), strict=True))
        heapq.heapify(self._cooling)

    def _change_group_size(self, group_size: int) -> None:
        """Scale success counts to a new K, those solved in part to stay within 1..K-1, and bucket them again."""
        old = self.group_size
        order = [q for k in range(old + 1) for q in self._buckets.members(k).tolist()]
        count = self._questions.live("count")
        scaled = np.clip(np.rint(count * (group_size / old)), 1, group_size - 1)
        count[:] = np.where(count > 0, scaled, count)
        self.group_size, self._buckets = group_size, BucketIndex(group_size)
        for q in order:
            self._enter_bucket(q)
        logger.warning("success counts of %d questions were scaled from K=%d to K=%d", len(order), old, group_size)
