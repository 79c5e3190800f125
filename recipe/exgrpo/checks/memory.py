"""Estimates of memory per GPU, of host memory, and of a step's tokens. Formulas, in bytes, for P parameters over S shards:

start        4 P/S + 4 x the largest tensor (verl loads in float32 and moves the shards to the GPU, with `offload_policy` too)
update       16 P/S (float32 weights, gradients, Adam's two moments; 0 with FSDP2's offload_policy); with LoRA 4 P/S + 16 of
             each parameter of the adapters (checks/lora.py)
             + 2 x embedding parameters (gathered in bfloat16)
             + T x hidden x layers x 2 (one checkpoint per layer) + T x (8 hidden + 4 ffn) x 2 (one layer at work, or all of
             them without gradient checkpointing)
             + T x vocabulary x `logit_bytes`
rollout      gpu_memory_utilization x usable + what the trainer leaves there: 4 P/S weights and 8 P/S moments unless offloaded
             + 2 GiB of CUDA graphs where vLLM's share leaves them out
KV cache     gpu_memory_utilization x usable - 2 P/tp - 2 GiB, at 4 x layers x kv_heads x head_dim / tp per token
each phase   + 2 GiB for CUDA and NCCL

T is the micro-batch token budget, `ppo_max_token_len_per_gpu`. A card has less than its name says (`USABLE`), and in start and
update less again what a sleeping vLLM keeps. On CPU the same sums are in float32 and meet in one memory.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from recipe.exgrpo.checks.findings import Finding, impossible, note, warning
from recipe.exgrpo.checks.lora import adapter_parameters, trained_parameters
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.checks.shapes import ModelShape
from recipe.exgrpo.checks.sizes import GIB, gib
from recipe.exgrpo.core.policies import policy_class
from verl_ext.platform import accelerator_visible

OVERHEAD = 2 * GIB
# GiB that torch finds on a card of so many GB, the least of those sold as such: A10G and L4, L40S, A100-40, H100, H200.
USABLE = {24: 22.0, 40: 39.4, 48: 44.4, 80: 79.2, 141: 139.8}
SLEEPING = 2.5 * GIB  # CUDA context, NCCL and graphs of a vLLM that sleeps: 1 to 2.5 GiB
# vLLM 0.24 runs these families with its newer runner (config/vllm.py), whose profile_cudagraph_memory is 0 (issue 49224 there).
GRAPHS, GRAPHS_LEFT_OUT = 2 * GIB, ("llama", "mistral", "qwen3")
# Bytes of a logit in verl's FSDP engine. Compiled, the entropy keeps the bfloat16 logits alone; with their gradients and a
# temporary that is 8. Eager, autocast adds a float32 copy and a float32 softmax (tests/checks/test_logit_bytes.py). Without
# flash-attn the log-probs keep a float32 log-softmax.
LOGIT, EAGER, NO_FLASH = 8, 8, 4
CPU_PROCESSES = 6 * GIB  # Ray, vLLM, agent loop and trainer, measured with the toy model
# Published for the 7B run: 202,011 trajectories stored in 700 steps of 128 x 8 rollouts of at most 8192 tokens, 1.77 GB.
STORED_SHARE = 202_011 / (700 * 128 * 8)
STORED_BYTES, STORED_TOKENS = 1.77e9 / 202_011, 8192


@dataclass(frozen=True)
class GpuEstimate:
    """Bytes on each GPU. `fixed` is the part of `update` that no token budget changes; `kv_tokens` counts cached tokens."""

    fixed: float
    update: float
    rollout: float
    kv_tokens: int
    start: float = 0.0


def usable_bytes(card: float) -> float:
    """What torch finds on a card of `card` GB; 95 % of a size that is not in the table."""
    return USABLE.get(card, 0.95 * card) * GIB


def logit_bytes(run: Run) -> int:
    """Bytes of one logit at the peak of the update on a GPU; 0 with fused kernels, which never hold all of them."""
    model = run.config.actor_rollout_ref.model
    if model.use_fused_kernels:
        return 0
    attention = (model.get("override_config") or {}).get("attn_implementation")
    eager = not run.actor.fsdp_config.use_torch_compile
    return LOGIT + EAGER * eager + NO_FLASH * (attention not in (None, "flash_attention_2"))


def window_of(run: Run) -> int:
    """Tokens of the longest sequence that vLLM prepares for: without a limit, the whole window of the model."""
    return run.rollout.max_model_len or (run.shape.positions if run.shape else None) or run.longest


def activation_bytes(run: Run, shape: ModelShape, width: int = 2) -> float:
    """Activations and logits of one micro-batch, `width` bytes per number."""
    model, tokens = run.config.actor_rollout_ref.model, run.token_budget
    layer = tokens * (8 * shape.hidden + 4 * shape.ffn) * width
    if model.enable_gradient_checkpointing:
        activations = tokens * shape.hidden * shape.layers * width + layer
    else:
        activations = layer * shape.layers
    each = logit_bytes(run) if width == 2 else 4 * width * (not model.use_fused_kernels)
    return activations + tokens * shape.vocab * each


def estimate_gpu(run: Run, shape: ModelShape, card: float) -> GpuEstimate:
    """Bytes per GPU with cards of `card` bytes, as they are sold (80 GiB: an H100)."""
    fsdp, tp = run.actor.fsdp_config, run.tensor_parallel
    each = (shape.parameters + adapter_parameters(run, shape)) / run.shards
    trained = trained_parameters(run, shape) / run.shards
    fixed = 0 if fsdp.offload_policy else 4 * each + 12 * trained
    left = 0 if fsdp.offload_policy or fsdp.param_offload else 4 * each
    left += 0 if fsdp.offload_policy or fsdp.optimizer_offload else 8 * trained
    share = run.rollout.gpu_memory_utilization * usable_bytes(card / GIB)
    graphs = GRAPHS if shape.family in GRAPHS_LEFT_OUT and not run.rollout.enforce_eager else 0
    per_token = 4 * shape.layers * shape.kv_heads * shape.head_dim / tp
    return GpuEstimate(
        fixed=fixed + OVERHEAD,
        update=fixed + 2 * shape.embedding_parameters + activation_bytes(run, shape) + OVERHEAD,
        rollout=share + left + graphs + OVERHEAD,
        kv_tokens=int(max(0, share - 2 * shape.parameters / tp - OVERHEAD) / per_token),
        start=4 * each + 4 * shape.largest_tensor + OVERHEAD,
    )


def experience_bytes(run: Run) -> float:
    """Host bytes of the policy's store at the end of the run: of the rollouts that it may hold, the published share, and
    what comes from elsewhere at the start."""
    settings = run.settings
    rollouts = policy_class(settings.policy).stored_rollouts(settings, run.sequences, run.steps)
    grown = rollouts * STORED_SHARE * STORED_BYTES * min(1, run.response_tokens / STORED_TOKENS)
    size = grown + run.imported
    return min(size, settings.buffer.max_bytes) if settings.buffer.max_bytes else size


def host_bytes(run: Run, shape: ModelShape) -> float:
    """Host bytes on one node: stored experience and whatever FSDP offloads, or the float32 models of the start if they are
    more: one on the first rank, or one on each where embeddings are tied (verl's `use_meta_tensor`)."""
    fsdp = run.actor.fsdp_config
    weights = 4 * bool(fsdp.offload_policy or fsdp.param_offload)
    states = 12 if fsdp.offload_policy else 8 * bool(fsdp.optimizer_offload)
    offloaded = weights * shape.parameters + states * trained_parameters(run, shape)
    start = 4 * shape.parameters * (run.gpus_per_node if shape.tied else 1)
    return max(start, experience_bytes(run) + offloaded / run.config.trainer.nnodes)


def cpu_bytes(run: Run, shape: ModelShape) -> float:
    """Memory of a run with `trainer.device=cpu`: trainer and vLLM in float32, and the processes around them."""
    cache = float(os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")) * GIB
    model = (4 + 4 * run.gpus) * shape.parameters + 12 * trained_parameters(run, shape)
    return CPU_PROCESSES + model + run.gpus * (activation_bytes(run, shape, 4) + cache) + experience_bytes(run)


def memory_findings(run: Run, ram: float | None = None, trains_here: bool | None = None) -> Iterator[Finding]:
    """What fits and what does not.

    `ram` is in bytes of this machine (default: measured). Host memory is held against it with a warning where the run trains
    (default: where there is an accelerator); a machine that only checks may have less.
    """
    ram = psutil.virtual_memory().total if ram is None else ram
    yield _token_note(run)
    if run.shape is None:
        yield note(
            f"memory: unknown, actor_rollout_ref.model.path={run.model} is not on this machine, or not of the Llama family."
        )
    elif run.config.trainer.device == "cpu":
        yield _cpu_finding(run, run.shape, ram)
    else:
        yield _host_finding(run, run.shape, ram, accelerator_visible() if trains_here is None else trains_here)
        yield from _gpu_findings(run, run.shape)


def _token_note(run: Run) -> Finding:
    tokens = run.sequences * run.longest
    return note(
        f"tokens: at most {tokens:,} per step ({run.sequences:,} sequences of {run.longest:,}), "
        f"{-(-tokens // (run.token_budget * run.gpus)):,} micro-batches of {run.token_budget:,} tokens on each GPU."
    )


def _cpu_finding(run: Run, shape: ModelShape, ram: float) -> Finding:
    needed = cpu_bytes(run, shape)
    text = f"memory: about {gib(needed)} of this machine's {gib(ram)}"
    if 4 * shape.parameters + 12 * trained_parameters(run, shape) > ram:
        return impossible(f"{text}, the optimizer alone is more; actor_rollout_ref.model.path must be a smaller model.")
    if needed > ram:
        return warning(f"{text}; lower actor_rollout_ref.actor.ppo_max_token_len_per_gpu or use a smaller model.")
    return note(f"{text}.")


def _host_finding(run: Run, shape: ModelShape, ram: float, trains_here: bool) -> Finding:
    needed = host_bytes(run, shape)
    text = (
        f"host memory: about {gib(needed)} per node, {gib(experience_bytes(run))} of it experience on the first (at the "
        f"published rate of storing{_from_elsewhere(run)}); this machine has {gib(ram)}"
    )
    if needed > ram and trains_here:
        return warning(
            f"{text}: bound exgrpo.buffer.max_bytes, or turn actor_rollout_ref.actor.fsdp_config.offload_policy off."
        )
    return note(f"{text}.")


def _from_elsewhere(run: Run) -> str:
    return f", and {gib(run.imported)} from exgrpo.experience.init_from" if run.imported else ""


def _gpu_findings(run: Run, shape: ModelShape) -> Iterator[Finding]:
    card = run.config.get("preset", {}).get("gpu_memory_gib")
    if not card:
        yield note("GPU memory: set preset.gpu_memory_gib to have it estimated.")
        return
    estimate, usable = estimate_gpu(run, shape, card * GIB), usable_bytes(card) / GIB
    beside_vllm = usable - SLEEPING / GIB
    yield from _start_findings(run, estimate, beside_vllm)
    yield _update_finding(estimate, beside_vllm)
    yield from _rollout_findings(run, estimate, usable)


def _start_findings(run: Run, estimate: GpuEstimate, card: float) -> Iterator[Finding]:
    if _is_full(estimate.start, card):
        yield impossible(
            f"GPU memory: loading {run.model} takes about {estimate.start / GIB:.0f} of {card:.0f} GiB, its float32 "
            "shard whatever is offloaded later; use more GPUs (trainer.n_gpus_per_node) or a smaller "
            "model (actor_rollout_ref.model.path)."
        )


def _is_full(size: float, card: float) -> bool:
    """Whether an estimate of `size` bytes takes all of `card` GiB: as printed, so that "24 of 24 GiB" is no note."""
    return round(size / GIB) >= round(card)


def _update_finding(estimate: GpuEstimate, card: float) -> Finding:
    text = f"GPU memory: the update takes about {estimate.update / GIB:.0f} of {card:.0f} GiB"
    if estimate.fixed > card * GIB:
        return impossible(
            f"{text}, weights and optimizer alone {estimate.fixed / GIB:.0f}; use more GPUs (trainer.n_gpus_per_node) or "
            "actor_rollout_ref.actor.fsdp_config.offload_policy=true."
        )
    if _is_full(estimate.update, card):
        return warning(
            f"{text}; lower actor_rollout_ref.actor.ppo_max_token_len_per_gpu, or use more GPUs (docs/multi-node.md)."
        )
    return note(f"{text}.")


def _rollout_findings(run: Run, estimate: GpuEstimate, card: float) -> Iterator[Finding]:
    utilization = "actor_rollout_ref.rollout.gpu_memory_utilization"
    if _is_full(estimate.rollout, card):
        yield warning(
            f"GPU memory: vLLM's share and the trainer's weights together take about {estimate.rollout / GIB:.0f} of "
            f"{card:.0f} GiB; lower {utilization} or set actor_rollout_ref.actor.fsdp_config.optimizer_offload=true."
        )
    window = window_of(run)
    whole = estimate.kv_tokens // window
    text = f"KV cache: {estimate.kv_tokens:,} tokens per replica, {whole} sequences of {window:,}"
    if not whole:
        yield impossible(
            f"{text}, and vLLM refuses to start without room for one; lower actor_rollout_ref.rollout.max_model_len (null: "
            f"prompt and response), raise {utilization} or actor_rollout_ref.rollout.tensor_model_parallel_size, or shorten "
            "data.max_response_length."
        )
    else:
        yield note(f"{text}.")
