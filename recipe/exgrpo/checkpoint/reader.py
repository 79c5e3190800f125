"""From the files of a checkpoint to the arrays of a buffer's state."""

import numpy as np

from recipe.exgrpo.checkpoint.format import IMMUTABLE_ROWS, common
from recipe.exgrpo.core.buffer import ExperienceBuffer
from recipe.exgrpo.core.buffer.state import spans
from recipe.exgrpo.core.config import BufferConfig

Arrays = dict[str, np.ndarray]


def restore(index: Arrays, segments: list[Arrays], meta: dict, config: BufferConfig) -> ExperienceBuffer:
    """The buffer of an index (rows and questions) and its segments; raises ValueError or KeyError where they contradict."""
    arrays, placement = _gather(index, segments)
    pieces = [(segment["token_ids"], segment["log_probs"]) for segment in segments]
    return ExperienceBuffer.restore(arrays, meta, pieces, placement, config)


def _gather(index: Arrays, segments: list[Arrays]) -> tuple[Arrays, tuple[np.ndarray, np.ndarray]]:
    """All columns of the live rows, and each row's place: its segment, and the offset of its tokens there."""
    live = index["row_serial"]
    piece, offset = np.full(len(live), -1, np.int64), np.zeros(len(live), np.int64)
    columns = {n: np.zeros(len(live), segments[0][n].dtype if segments else np.int32) for n in IMMUTABLE_ROWS[1:]}
    for number, segment in enumerate(segments):
        found, at = common(segment["row_serial"], live)
        if (piece[at] != -1).any():
            raise ValueError("a trajectory is in two segments")
        piece[at] = number
        lengths = spans(segment)
        offset[at] = (np.cumsum(lengths) - lengths)[found]
        for name, column in columns.items():
            column[at] = segment[name][found]
    if (piece == -1).any():
        raise ValueError("a trajectory is in no segment")
    return index | columns, (piece, offset)
