"""The experience buffer's state at rest: a frozen view to write from, its encoding as arrays, and what makes it valid.

Arrays (R live trajectories in insertion order, Q questions, T tokens):
    row_serial i8, row_question i4, row_prompt_length i4, row_length i4, row_reward f8, row_birth_step i4, row_group i4,
    row_group_successes i2, row_group_size i2, row_advantage f8, row_origin i2 (index into `origins` of the meta),
    row_use_count i4, row_entropy f4, row_nll f4, row_drift f4, row_digest u8, row_prompt_hash u8: [R];
    token_ids i4, log_probs f4 or f2: [T], one trajectory after the other, each its prompt (where stored) and its response;
    a nan log-prob marks a token that the model did not write;
    question_names u1 (UTF-8, concatenated), question_name_lengths i4 [Q] in characters (0: index given back),
    question_count i2 [Q] (-1: none), question_cool_until i4 [Q] (-1: not cooling), question_free i4, retired i4,
    bucket_members i4 (buckets 0..K, each in draw order), bucket_sizes i8 [K + 1].
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

NONE = -1  # no count, no place in a bucket, no previous row, no cooldown, a dead row's question
STATE_VERSION = 2


@dataclass(frozen=True)
class Snapshot:
    """A frozen view of a buffer: copies of its small columns, and its token segments, whose used cells never change."""

    rows: dict[str, np.ndarray]
    questions: dict[str, np.ndarray]
    names: list[str]
    meta: dict
    placement: tuple[np.ndarray, np.ndarray]
    segments: dict[int, tuple[np.ndarray, np.ndarray]]

    def question_arrays(self) -> dict[str, np.ndarray]:
        """The question columns, with the ids encoded."""
        return self.questions | encode_names(self.names)

    def tokens(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids and log-probs (as stored) of the rows at positions `rows`, concatenated."""
        none = np.empty(0, np.int32), np.empty(0, self.meta["log_prob_dtype"])
        ids, log_probs = zip(none, *self.runs(rows), strict=True)
        return np.concatenate(ids), np.concatenate(log_probs)

    def runs(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same without a copy: one pair of views for each run of rows that follow one another in memory."""
        if not len(rows):
            return
        segment, offset = (column[rows].astype(np.int64) for column in self.placement)
        length = spans(self.rows)[rows]
        breaks = (segment[1:] != segment[:-1]) | (offset[1:] != offset[:-1] + length[:-1])
        starts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
        for first, size in zip(starts.tolist(), np.add.reduceat(length, starts).tolist(), strict=True):
            ids, log_probs = self.segments[int(segment[first])]
            at = int(offset[first])
            yield ids[at : at + size], log_probs[at : at + size]


def spans(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Tokens of each row in the log, prompt and response, int64 [R]."""
    return arrays["row_prompt_length"] + arrays["row_length"].astype(np.int64)


def encode_names(names: list[str]) -> dict[str, np.ndarray]:
    """Question ids as bytes and their lengths in characters."""
    encoded = "".join(names).encode("utf-8", "surrogatepass")
    return {
        "question_names": np.frombuffer(encoded, np.uint8),
        "question_name_lengths": np.fromiter(map(len, names), np.int32, len(names)),
    }


def decode_names(arrays: dict[str, np.ndarray]) -> list[str]:
    """Inverse of `encode_names`."""
    text = arrays["question_names"].tobytes().decode("utf-8", "surrogatepass")
    ends = np.cumsum(arrays["question_name_lengths"], dtype=np.int64).tolist()
    return [text[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)] if ends else []


def check_state(arrays: dict[str, np.ndarray], meta: dict) -> None:
    """Raises ValueError with the contradiction when arrays and meta do not describe one buffer."""
    if meta.get("version") != STATE_VERSION:
        raise ValueError(f"experience state: version {meta.get('version')} is not {STATE_VERSION}, the one known here.")
    for found, what in _contradictions(arrays, meta):
        if found:
            raise ValueError(f"experience state: {what}.")


def _contradictions(arrays, meta):
    """Pairs (present, description), checked in order, so that later ones may rely on earlier ones."""
    group_size, names = meta["group_size"], arrays["question_name_lengths"]
    serial, question = arrays["row_serial"], arrays["row_question"]
    count, retired, free = arrays["question_count"], arrays["retired"], arrays["question_free"]
    total = len(names)
    rows = {len(column) for name, column in arrays.items() if name.startswith("row_")}
    yield len(rows) > 1, "row columns differ in length"
    yield {len(count), len(arrays["question_cool_until"])} != {total}, "question columns differ in length"
    yield bool((np.diff(serial) <= 0).any()) or bool((serial >= meta["next_serial"]).any()), "row serials do not ascend"
    yield _outside(question, total), "a trajectory belongs to no question"
    yield bool((arrays["row_length"] <= 0).any()), "a trajectory has no tokens"
    yield bool((arrays["row_prompt_length"] < 0).any()), "a prompt has a negative length"
    yield _outside(arrays["row_origin"], len(meta["origins"])), "a trajectory's origin is not known"
    yield _outside(arrays["row_group"] + 1, meta["next_group"] + 1), "a trajectory's group was never made"
    yield bool(((count < NONE) | (count >= group_size)).any()), f"a success count is outside 0..{group_size - 1}"
    yield _outside(retired, total) or _outside(free, total), "a retired or free question index does not exist"
    yield len(np.unique(retired)) < len(retired) or bool((names < 0).any()), "a question is retired twice or unnamed"
    yield not np.array_equal(np.sort(free), np.flatnonzero(names == 0)), "discarded indices are not the unnamed ones"
    idle = np.zeros(total, bool)
    idle[retired] = idle[free] = True
    yield bool(idle[question].any()), "a retired or discarded question has trajectories"
    yield from _bucket_contradictions(arrays, group_size, idle)


def _bucket_contradictions(arrays, group_size, idle):
    members, sizes, count = arrays["bucket_members"], arrays["bucket_sizes"], arrays["question_count"]
    total = len(count)
    yield len(sizes) != group_size + 1 or bool((sizes < 0).any()), f"there are not {group_size + 1} buckets"
    yield sizes.sum() != len(members) or _outside(members, total), "bucket sizes and members disagree"
    stored = np.bincount(arrays["row_question"], minlength=total) > 0
    eligible = (count > 0) & stored & (arrays["question_cool_until"] == NONE) & ~idle
    yield not np.array_equal(np.sort(members), np.flatnonzero(eligible)), "buckets do not hold the eligible questions"
    yield bool((count[members] != np.repeat(np.arange(group_size + 1), sizes)).any()), "a question is in a wrong bucket"


def check_placement(lengths: np.ndarray, pieces, piece: np.ndarray, offset: np.ndarray) -> None:
    """Raises ValueError when a row's tokens lie outside its piece, or ids and log-probs of a piece differ in number."""
    sizes = np.array([len(ids) for ids, _ in pieces], np.int64)
    if any(len(ids) != len(log_probs) for ids, log_probs in pieces):
        raise ValueError("experience state: token ids and log-probs differ in number.")
    if _outside(piece, len(pieces)) or (offset < 0).any() or (offset + lengths > sizes[piece]).any():
        raise ValueError("experience state: a trajectory's tokens are missing.")


def _outside(index: np.ndarray, total: int) -> bool:
    return bool(((index < 0) | (index >= total)).any())
