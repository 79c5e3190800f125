"""Where the experience buffer keeps trajectories: row columns, a token log, and per question a linked list of its rows.

Questions are indices here; what they are called, and whether they are eligible, is the buffer's business.
"""

import math
from collections.abc import Sequence

import numpy as np

from recipe.exgrpo.core.buffer.columns import Columns, TokenLog
from recipe.exgrpo.core.buffer.records import CheckedResponse, Provenance
from recipe.exgrpo.core.buffer.state import NONE, spans

# Rows stand in insertion order and `serial`, the handle of a trajectory, grows with them: a handle is found by
# bisection, is never used twice, and survives compaction and checkpoints. A row's slice of the token log is its prompt (where
# that is stored), then its response; a nan log-prob there marks a token that the model did not write, so a mask costs nothing.
ROW_DTYPES = {
    "serial": "i8", "question": "i4", "previous": "i4", "segment": "i4", "offset": "i4", "prompt_length": "i4",
    "length": "i4", "reward": "f8", "birth_step": "i4", "group": "i4", "group_successes": "i2", "group_size": "i2",
    "advantage": "f8", "origin": "i2", "use_count": "i4", "entropy": "f4", "nll": "f4", "drift": "f4",
    "digest": "u8", "prompt_hash": "u8",
}  # fmt: skip
SCORES = ("entropy", "nll", "drift")
ROW_BYTES = sum(np.dtype(d).itemsize for d in ROW_DTYPES.values())
MAX_DEAD_SHARE = 0.1  # of the live tokens, before segments are compacted
COMPACTED_SEGMENTS = 4  # worth of tokens moved in one `compact`, so that a step never waits for long


class TrajectoryStore:
    """Trajectories in rows. Positions are valid until the next `append`; handles until their trajectory is dropped."""

    def __init__(self, log_prob_dtype: str, segment_tokens: int):
        self.rows = Columns(ROW_DTYPES)
        self.log = TokenLog(log_prob_dtype, segment_tokens)
        self.next_serial = 0
        self.live_rows = 0
        self.live_questions = 0
        self.compacted_tokens = 0
        self._lists = Columns({"last": "i4", "held": "i4"})  # per question: its latest row, and how many it has

    def open_question(self, q: int) -> None:
        """Make room for question `q`, which is the next new index or one that is known."""
        if q == self._lists.size:
            self._lists.append()
            self._lists.last[q], self._lists.held[q] = NONE, 0

    def count(self, q: int) -> int:
        """Rows of a question."""
        return int(self._lists.held[q])

    def counts(self) -> np.ndarray:
        """Rows of every question, int32."""
        return self._lists.live("held")

    def append(self, q: int, response: CheckedResponse, reward: float, step: int, digest: int, origin: int) -> int:
        """Store a trajectory as the latest of question `q`; returns its position. The caller sets prompt hash and group."""
        self._make_room()
        rows, at = self.rows, self.rows.append()
        rows.segment[at], rows.offset[at] = self.log.append(*response.span())
        rows.serial[at] = self.next_serial
        rows.question[at] = q
        rows.previous[at] = self._lists.last[q]
        rows.prompt_length[at] = len(response.prompt_ids)
        rows.length[at] = len(response.token_ids)
        rows.reward[at] = reward
        rows.birth_step[at] = step
        rows.origin[at] = origin
        rows.use_count[at] = 0
        rows.entropy[at] = rows.nll[at] = rows.drift[at] = math.nan
        rows.digest[at] = digest
        self.next_serial += 1
        self.live_rows += 1
        self.live_questions += self._lists.held[q] == 0
        self._lists.last[q] = at
        self._lists.held[q] += 1
        return at

    def set_provenance(self, at: int, prompt_hash: int, provenance: Provenance) -> None:
        """Complete a row that was just appended."""
        rows = self.rows
        rows.prompt_hash[at] = prompt_hash
        rows.group[at] = provenance.group
        rows.group_successes[at] = provenance.successes
        rows.group_size[at] = provenance.size
        rows.advantage[at] = provenance.advantage

    def holds(self, q: int, response: CheckedResponse, digest: int) -> bool:
        """Whether question `q` has exactly these ids by the same writers; `digest` is their hash, and they decide."""
        rows, at = self.rows, int(self._lists.last[q])
        while at != NONE:
            if rows.digest[at] == digest and self._same(at, response):
                return True
            at = int(rows.previous[at])
        return False

    def _same(self, at: int, response: CheckedResponse) -> bool:
        ids, log_probs = (values[self.rows.prompt_length[at] :] for values in self.span(at))
        return np.array_equal(response.token_ids, ids) and np.array_equal(response.mask, ~np.isnan(log_probs))

    def positions(self, q: int) -> list[int]:
        """Where a question's rows stand, in insertion order."""
        found, at = [], int(self._lists.last[q])
        while at != NONE:
            found.append(at)
            at = int(self.rows.previous[at])
        return found[::-1]

    def find(self, serials: Sequence[int] | np.ndarray) -> np.ndarray:
        """Where the trajectories with these handles stand, int64 [n]; KeyError when one was dropped."""
        serials = np.atleast_1d(np.asarray(serials, np.int64))
        rows, at = self.rows, self.rows.live("serial").searchsorted(serials)
        found = at < rows.size
        found[found] = (rows.serial[at[found]] == serials[found]) & (rows.question[at[found]] != NONE)
        if not found.all():
            gone = serials[~found][0]
            raise KeyError(f"trajectory {gone} is not in the buffer: evicted, or its question retired")
        return at

    def span(self, at: int) -> tuple[np.ndarray, np.ndarray]:
        """Views of the ids and log-probs (as stored) of the row at a position, its prompt first."""
        rows = self.rows
        length = int(rows.prompt_length[at]) + int(rows.length[at])
        return self.log.view(int(rows.segment[at]), int(rows.offset[at]), length)

    def spans(self) -> np.ndarray:
        """Tokens that each row has in the log, prompt and response, int64 [rows]."""
        return self.rows.live("prompt_length") + self.rows.live("length").astype(np.int64)

    def alive(self) -> np.ndarray:
        """Which rows are live, bool [rows]."""
        return self.rows.live("question") != NONE

    def drop_question(self, q: int) -> None:
        """Drop all rows of a question."""
        self._free(self.positions(q))
        self._relink(q, [])

    def drop(self, mask: np.ndarray) -> list[int]:
        """Drop the live rows under `mask` (bool [rows]); returns the questions that have none left."""
        positions = np.flatnonzero(mask)
        questions = np.unique(self.rows.question[positions]).tolist()
        self._free(positions.tolist())
        for q in questions:
            self._relink(q, [at for at in self.positions(q) if self.rows.question[at] == q])
        return [q for q in questions if not self._lists.held[q]]

    def compact(self) -> None:
        """Move live rows out of the segments with most dead space, a bounded number of tokens at a time."""
        rows, budget = self.rows, COMPACTED_SEGMENTS * self.log.segment_tokens
        while budget > 0 and (segment := self.log.deadest_segment(MAX_DEAD_SHARE)) is not None:
            for at in np.flatnonzero(self.alive() & (rows.live("segment") == segment)).tolist():
                ids, log_probs = self.span(at)
                rows.segment[at], rows.offset[at] = self.log.append(ids, log_probs)
                self.log.free(segment, len(ids))
                self.compacted_tokens += len(ids)
                budget -= len(ids)

    @property
    def nbytes(self) -> int:
        """Bytes of the live trajectories: tokens with log-probs (stored prompts included) and row columns."""
        return self.log.live_tokens * self.log.token_bytes + self.live_rows * ROW_BYTES

    def bytes_of(self, tokens: int) -> int:
        """Bytes of a trajectory of so many tokens."""
        return tokens * self.log.token_bytes + ROW_BYTES

    @property
    def allocated_bytes(self) -> int:
        return self.log.nbytes + self.rows.nbytes + self._lists.nbytes

    def frozen(self) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, np.ndarray], dict]:
        """Copies of the live rows' columns, their (segment, offset), and the segments, whose used cells never change."""
        alive = self.alive()
        rows = {f"row_{name}": self.rows.live(name)[alive] for name in ROW_DTYPES if name != "previous"}
        placement = rows.pop("row_segment"), rows.pop("row_offset")
        return rows, placement, {i: (s.ids, s.log_probs) for i, s in self.log.segments.items()}

    def fill(
        self, arrays: dict[str, np.ndarray], pieces, piece: np.ndarray, offset: np.ndarray, questions: int
    ) -> None:
        """Take over the rows of a checked state; `pieces` are adopted as segments without a copy."""
        question, lengths = arrays["row_question"], spans(arrays)
        live = np.bincount(piece, lengths, minlength=len(pieces)).astype(np.int64)
        numbers = np.zeros(len(pieces), np.int32)
        for i, (ids, log_probs) in enumerate(pieces):
            if live[i]:
                numbers[i] = self.log.adopt(ids, log_probs.astype(self.log.log_prob_dtype, copy=False), int(live[i]))
        order = np.argsort(question, kind="stable")
        previous = np.full(len(question), NONE, np.int32)
        same = question[order[1:]] == question[order[:-1]]
        previous[order[1:][same]] = order[:-1][same]
        columns = {name: arrays[f"row_{name}"] for name in ROW_DTYPES if f"row_{name}" in arrays}
        self.rows.fill(columns | {"previous": previous, "segment": numbers[piece], "offset": offset}, len(question))
        counts = np.bincount(question, minlength=questions)
        self._lists.fill({"last": NONE, "held": counts}, questions)
        self._lists.live("last")[question[order]] = order  # of equal indices the last one stays
        self.live_rows, self.live_questions = len(question), int(np.count_nonzero(counts))

    def _free(self, positions: Sequence[int]) -> None:
        rows = self.rows
        for at in positions:
            self.log.free(int(rows.segment[at]), int(rows.prompt_length[at]) + int(rows.length[at]))
            rows.question[at] = NONE
        self.live_rows -= len(positions)

    def _relink(self, q: int, positions: list[int]) -> None:
        """Make `positions` (in insertion order) the rows of a question."""
        self.live_questions += (len(positions) > 0) - int(self._lists.held[q] > 0)
        self._lists.held[q] = len(positions)
        self._lists.last[q] = positions[-1] if positions else NONE
        self.rows.previous[positions] = [NONE, *positions[:-1]][: len(positions)]

    def _make_room(self) -> None:
        """Before the row columns grow, squeeze out dead rows if a quarter are: amortised O(1) a row."""
        rows = self.rows
        if rows.size < rows.capacity or (rows.size - self.live_rows) * 4 < rows.size:
            return
        alive = self.alive()
        moved = np.append(np.cumsum(alive, dtype=np.int32) - 1, NONE)  # position NONE stays NONE
        for column in (rows.live("previous"), self._lists.live("last")):
            column[:] = moved[column]
        rows.keep(alive)
