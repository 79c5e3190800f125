"""Which trajectories a bounded buffer gives up, and in which order."""

import numpy as np

from recipe.exgrpo.core.buffer.trajectories import ROW_BYTES, TrajectoryStore
from recipe.exgrpo.core.config import BufferConfig

REASONS = ("age", "reuse", "per_question", "bytes")


def over_bound(store: TrajectoryStore, config: BufferConfig, reason: str, step: int) -> np.ndarray | None:
    """The rows (bool [rows]) over the bound named by `reason` at `step`; None where it is off or not exceeded."""
    if reason == "age" and config.max_age_steps is not None:
        return store.alive() & (step - store.rows.live("birth_step") > config.max_age_steps)
    if reason == "reuse" and config.max_reuse is not None:
        return store.alive() & (store.rows.live("use_count") >= config.max_reuse)
    if reason == "per_question" and config.max_per_question is not None:
        return _over_per_question(store, config.max_per_question, config.eviction)
    if reason == "bytes" and config.max_bytes is not None and store.nbytes > config.max_bytes:
        return _over_bytes(store, config.max_bytes, config.eviction)
    return None


def eviction_order(store: TrajectoryStore, positions: np.ndarray, policy: str) -> np.ndarray:
    """`positions` with the first to go first; ties go to the oldest, and what was never scored goes last."""
    birth = store.rows.birth_step[positions]
    if policy == "highest_entropy":
        key = np.nan_to_num(-store.rows.entropy[positions], nan=np.inf)
    elif policy == "most_reused":
        key = -store.rows.use_count[positions]
    else:
        key = birth
    return positions[np.lexsort((positions, birth, key))]


def _over_per_question(store: TrajectoryStore, limit: int, policy: str) -> np.ndarray:
    mask = np.zeros(store.rows.size, bool)
    for q in np.flatnonzero(store.counts() > limit).tolist():
        order = eviction_order(store, np.array(store.positions(q)), policy)
        mask[order[: len(order) - limit]] = True
    return mask


def _over_bytes(store: TrajectoryStore, limit: int, policy: str) -> np.ndarray:
    order = eviction_order(store, np.flatnonzero(store.alive()), policy)
    freed = np.cumsum(store.spans()[order] * np.int64(store.log.token_bytes) + ROW_BYTES)
    mask = np.zeros(store.rows.size, bool)
    mask[order[: np.searchsorted(freed, store.nbytes - limit) + 1]] = True
    return mask
