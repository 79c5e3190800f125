"""Checks of the weight sync: verl sends every tensor of the trainer as it is kept, in float32, through a bucket of fixed size.

`BucketedWeightSender` (verl 0.9.1, workers/rollout/vllm_rollout/bucketed_weight_transfer.py) casts nothing. A tensor larger
than the bucket goes around it, by a path that shared memory does not have. A model with tied embeddings sends them twice, as
`model.embed_tokens.weight` first and `lm_head.weight` last; vLLM's CPU build (0.31) does not load them from two buckets, while
the loaders of 0.24 skip the second.
"""

from collections.abc import Iterator

from recipe.exgrpo.checks.findings import Finding, note, warning
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.checks.shapes import ModelShape
from recipe.exgrpo.checks.sizes import MIB

KEY = "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
WIDTH = 4  # bytes of a float32, in which verl trains (engine_config.model_dtype: fp32)
STEP = 256  # MiB, of the sizes that are recommended


def sync_bytes(shape: ModelShape) -> int:
    """Bytes of one weight sync, tied embeddings counted as often as they are sent."""
    return WIDTH * (shape.parameters + (shape.vocab * shape.hidden if shape.tied else 0))


def sync_findings(run: Run) -> Iterator[Finding]:
    """A bucket that is too small, and what a sync moves."""
    if run.shape is None:
        return
    bucket, whole = run.rollout.checkpoint_engine.update_weights_bucket_megabytes * MIB, sync_bytes(run.shape)
    largest = WIDTH * run.shape.largest_tensor
    yield note(f"weight sync: {whole / MIB:,.0f} MiB in float32 each step, {bucket / MIB:,.0f} MiB at a time.")
    if run.shape.tied and bucket < whole:
        yield warning(
            f"{KEY} is {bucket // MIB} and the model has tied embeddings and sends {whole / MIB:,.0f} MiB; not every vLLM "
            f"loads them from two buckets: set it to {_rounded(whole)}."
        )
    elif bucket < largest:
        yield warning(
            f"{KEY} is {bucket // MIB} and the largest tensor has {largest / MIB:,.0f} MiB, which then goes around the bucket; "
            f"set it to {_rounded(largest)}."
        )


def _rounded(size: float) -> int:
    """MiB that hold `size` bytes, in steps."""
    return -(-int(size) // (STEP * MIB)) * STEP
