"""What an evaluation costs at most, for `--dry-run`: counts are exact, the speed is an order of magnitude."""

import os
from typing import Any

from verl_ext.evaluation.plan import Plan

# Useful floating-point operations per second while sampling, two per parameter and token. CPU: 396 tokens/s of a
# 135M-parameter model on 2 cores (vLLM, bfloat16, batches of 32). GPU: a twentieth of an H100's 989 Tflop/s, since
# sampling waits for memory.
CORE_FLOPS, GPU_FLOPS = 5e10, 5e13


def estimate(plan: Plan) -> dict[str, Any]:
    """Counts, and the time if every response were as long as it may be; None where the parameters are not known."""
    limit = plan.response_limit
    tokens = len(plan.items) * limit
    chips = plan.shards * plan.options.tensor_parallel if plan.devices else len(os.sched_getaffinity(0))
    flops = chips * (GPU_FLOPS if plan.devices else CORE_FLOPS)
    pace = flops / (2 * plan.model.parameters) if plan.model.parameters else None
    return {
        "benchmarks": {
            b.name: {"questions": len(b.questions), "available": b.available, "samples": b.n_samples,
                     "generations": len(b.questions) * b.n_samples}
            for b in plan.benchmarks
        },
        "generations": len(plan.items),
        "prompt_tokens": plan.prompts.total(plan.benchmarks),
        "response_limit": limit,
        "response_tokens_at_most": tokens,
        "processes": plan.shards,
        "accelerators": chips if plan.devices else 0,
        "parameters": plan.model.parameters,
        "tokens_per_second_guess": pace,
        "hours_at_most_guess": None if pace is None else tokens / pace / 3600,
    }  # fmt: skip
