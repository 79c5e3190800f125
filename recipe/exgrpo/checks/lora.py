"""What a LoRA run trains: adapters beside frozen weights (`actor_rollout_ref.model.lora_rank` above 0)."""

from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.checks.shapes import ModelShape


def adapter_parameters(run: Run, shape: ModelShape) -> int:
    """Parameters of all adapters, 0 without LoRA: rank x (inputs + outputs) of every projection, verl's `all-linear`.

    Fewer `target_modules` train less; the estimate stays on the safe side of them.
    """
    rank = run.config.actor_rollout_ref.model.get("lora_rank") or 0
    heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = 2 * (shape.hidden + heads) + 2 * (shape.hidden + kv)
    return rank * shape.layers * (attention + 3 * (shape.hidden + shape.ffn))


def trained_parameters(run: Run, shape: ModelShape) -> int:
    """Parameters with a gradient and two moments of Adam: the adapters', else all of the model's."""
    return adapter_parameters(run, shape) or shape.parameters
