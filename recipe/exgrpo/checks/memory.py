"""Estimates of memory per GPU, of host memory, and of a step's tokens. Formulas, in bytes, for P parameters over S shards:

update       16 P/S (float32 weights, gradients, Adam's two moments; 0 with FSDP2's offload_policy)
             + 2 x embedding parameters (gathered in bfloat16: FSDP2 does not split them off the root)
             + T x hidden x layers x 2 (one checkpoint a layer) + T x (8 hidden + 4 ffn) x 2 (one layer at work, or all of
             them without gradient checkpointing)
             + 4 x T x vocabulary x 2 (logits, their gradient, the entropy's softmax and a temporary; 0 with fused kernels)
rollout      gpu_memory_utilization x card + what the trainer leaves there: 4 P/S weights and 8 P/S moments unless offloaded
KV cache     gpu_memory_utilization x card - 2 P/tp - 2 GiB, at 4 x layers x kv_heads x head_dim / tp a token
each phase   + 2 GiB for CUDA and NCCL

T is `ppo_max_token_len_per_gpu`. On CPU the same sums are in float32 and meet in one memory.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from recipe.exgrpo.checks.findings import Finding, impossible, note, warning
from recipe.exgrpo.checks.model import ModelShape, longest_sequence, model_shape
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies import policy_class

GIB = 2**30
OVERHEAD = 2 * GIB
CPU_PROCESSES = 6 * GIB  # Ray, vLLM, agent loop and trainer, measured with the toy model
# Published for the 7B run: 202,011 trajectories stored in 700 steps of 128 x 8 rollouts, 1.77 GB.
STORED_SHARE = 202_011 / (700 * 128 * 8)
STORED_BYTES = 1.77e9 / 202_011


@dataclass(frozen=True)
class GpuEstimate:
    """Bytes on each GPU. `fixed` is the part of `update` that no token budget changes; `kv_tokens` counts cached tokens."""

    fixed: float
    update: float
    rollout: float
    kv_tokens: int


def world_size(config: DictConfig) -> int:
    """GPUs of the trainer."""
    return config.trainer.nnodes * config.trainer.n_gpus_per_node


def shards(config: DictConfig) -> int:
    """Ranks over which FSDP spreads weights, gradients and optimizer."""
    size = config.actor_rollout_ref.actor.fsdp_config.fsdp_size
    return world_size(config) if size is None or size <= 0 else min(size, world_size(config))


def activation_bytes(config: DictConfig, shape: ModelShape, width: int = 2) -> float:
    """Activations and logits of one micro-batch of `ppo_max_token_len_per_gpu` tokens, `width` bytes a number."""
    tokens = config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu
    layer = tokens * (8 * shape.hidden + 4 * shape.ffn) * width
    if config.actor_rollout_ref.model.enable_gradient_checkpointing:
        activations = tokens * shape.hidden * shape.layers * width + layer
    else:
        activations = layer * shape.layers
    copies = 0 if config.actor_rollout_ref.model.use_fused_kernels else 4
    return activations + copies * tokens * shape.vocab * width


def estimate_gpu(config: DictConfig, shape: ModelShape, card: float) -> GpuEstimate:
    """Bytes per GPU with cards of `card` bytes."""
    fsdp, rollout = config.actor_rollout_ref.actor.fsdp_config, config.actor_rollout_ref.rollout
    each = shape.parameters / shards(config)
    tp = rollout.tensor_model_parallel_size
    fixed = 0 if fsdp.offload_policy else 16 * each
    left = 0 if fsdp.offload_policy or fsdp.param_offload else 4 * each
    left += 0 if fsdp.offload_policy or fsdp.optimizer_offload else 8 * each
    share = rollout.gpu_memory_utilization * card
    per_token = 4 * shape.layers * shape.kv_heads * shape.head_dim / tp
    return GpuEstimate(
        fixed=fixed + OVERHEAD,
        update=fixed + 2 * shape.embedding_parameters + activation_bytes(config, shape) + OVERHEAD,
        rollout=share + left + OVERHEAD,
        kv_tokens=int(max(0, share - 2 * shape.parameters / tp - OVERHEAD) / per_token),
    )


def buffer_bytes(config: DictConfig) -> float:
    """Host bytes of the policy's store at the end of the run, at the published rate of storing; 0 without one."""
    settings, data = ExGRPOConfig.from_mapping(OmegaConf.to_container(config.exgrpo, resolve=True)), config.data
    rollouts, steps = (
        data.train_batch_size * config.actor_rollout_ref.rollout.n,
        config.trainer.total_training_steps or 0,
    )
    stored = policy_class(settings.policy).stored_rollouts(settings, rollouts, steps) * STORED_SHARE
    grown = stored * STORED_BYTES * min(1, data.max_response_length / 8192)
    return min(grown, settings.buffer.max_bytes) if settings.buffer.max_bytes else grown


def host_bytes(config: DictConfig, shape: ModelShape) -> float:
    """Host bytes on one node: the buffer and whatever FSDP offloads."""
    fsdp = config.actor_rollout_ref.actor.fsdp_config
    per_parameter = 16 if fsdp.offload_policy else 4 * bool(fsdp.param_offload) + 8 * bool(fsdp.optimizer_offload)
    return buffer_bytes(config) + per_parameter * shape.parameters / config.trainer.nnodes


def cpu_bytes(config: DictConfig, shape: ModelShape) -> float:
    """Memory of a run with `trainer.device=cpu`: trainer and vLLM in float32, and the processes around them."""
    cache = float(os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")) * GIB
    ranks = world_size(config)
    model = (16 + 4 * ranks) * shape.parameters
    return CPU_PROCESSES + model + ranks * (activation_bytes(config, shape, 4) + cache) + buffer_bytes(config)


def memory_findings(config: DictConfig, ram: float | None = None) -> Iterator[Finding]:
    """What fits and what does not; `ram` (bytes of this machine, default: measured) matters on CPU only."""
    shape = model_shape(config.actor_rollout_ref.model.path)
    yield from _token_findings(config)
    if shape is None:
        yield note(
            f"memory: unknown, actor_rollout_ref.model.path={config.actor_rollout_ref.model.path} is not on this machine, or "
            "not of the Llama family."
        )
    elif config.trainer.device == "cpu":
        yield from _cpu_findings(config, shape, ram)
    else:
        yield from _gpu_findings(config, shape)


def _token_findings(config: DictConfig) -> Iterator[Finding]:
    actor, sequences = config.actor_rollout_ref.actor, config.data.train_batch_size * config.actor_rollout_ref.rollout.n
    longest = longest_sequence(config)
    budget = actor.ppo_max_token_len_per_gpu * world_size(config)
    yield note(
        f"tokens: at most {sequences * longest:,} a step ({sequences:,} sequences of {longest:,}), "
        f"{-(-sequences * longest // budget):,} micro-batches of {actor.ppo_max_token_len_per_gpu:,} tokens on each GPU."
    )


def _cpu_findings(config: DictConfig, shape: ModelShape, ram: float | None) -> Iterator[Finding]:
    if ram is None:
        import psutil

        ram = psutil.virtual_memory().total
    needed = cpu_bytes(config, shape)
    text = f"memory: about {needed / GIB:.1f} GiB of this machine's {ram / GIB:.1f} GiB"
    if 16 * shape.parameters > ram:
        yield impossible(f"{text}, the optimizer alone is more; actor_rollout_ref.model.path must be a smaller model.")
    elif needed > ram:
        yield warning(f"{text}; lower actor_rollout_ref.actor.ppo_max_token_len_per_gpu or use a smaller model.")
    else:
        yield note(f"{text}.")


def _gpu_findings(config: DictConfig, shape: ModelShape) -> Iterator[Finding]:
    yield note(
        f"host memory: about {host_bytes(config, shape) / GIB:.0f} GiB a node, {buffer_bytes(config) / GIB:.1f} GiB of it "
        "experience on the first (at the published rate of storing)."
    )
    gib = config.get("preset", {}).get("gpu_memory_gib")
    if not gib:
        yield note("GPU memory: set preset.gpu_memory_gib to have it estimated.")
        return
    estimate = estimate_gpu(config, shape, gib * GIB)
    yield from _update_findings(estimate, gib)
    yield from _rollout_findings(config, estimate, gib)


def _update_findings(estimate: GpuEstimate, gib: float) -> Iterator[Finding]:
    text = f"GPU memory: the update takes about {estimate.update / GIB:.0f} of {gib:.0f} GiB"
    if estimate.fixed > gib * GIB:
        yield impossible(
            f"{text}, weights and optimizer alone {estimate.fixed / GIB:.0f}; use more GPUs (trainer.n_gpus_per_node) or "
            "actor_rollout_ref.actor.fsdp_config.offload_policy=true."
        )
    elif estimate.update > gib * GIB:
        yield warning(
            f"{text}; lower actor_rollout_ref.actor.ppo_max_token_len_per_gpu, or use more GPUs (docs/multi-node.md)."
        )
    else:
        yield note(f"{text}.")


def _rollout_findings(config: DictConfig, estimate: GpuEstimate, gib: float) -> Iterator[Finding]:
    longest = longest_sequence(config)
    utilization = "actor_rollout_ref.rollout.gpu_memory_utilization"
    if estimate.rollout > gib * GIB:
        yield warning(
            f"GPU memory: vLLM's share and the trainer's weights together take about {estimate.rollout / GIB:.0f} of "
            f"{gib:.0f} GiB; lower {utilization} or set actor_rollout_ref.actor.fsdp_config.optimizer_offload=true."
        )
    text = (
        f"KV cache: {estimate.kv_tokens:,} tokens a replica, {estimate.kv_tokens // longest} sequences of full length"
    )
    if estimate.kv_tokens < longest:
        yield impossible(
            f"{text}; raise {utilization} or actor_rollout_ref.rollout.tensor_model_parallel_size, or shorten "
            "data.max_response_length."
        )
    else:
        yield note(f"{text}.")
