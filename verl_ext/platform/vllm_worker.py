"""vLLM's worker on the CPU: keep the linear weights where verl can overwrite them.

Selected by `actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls` on CPU only; nothing else imports it.
"""

from __future__ import annotations

import torch
import vllm.model_executor.layers.utils as layer_utils
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from vllm.model_executor.models.utils import WeightsMapper


def use_plain_linear(layer: torch.nn.Module, remove_weight: bool) -> None:
    """Multiply with `torch.nn.functional.linear` instead of a packed copy of the weight.

    vLLM's CPU backend packs every 2-d weight and leaves an empty parameter behind, so that loading the trainer's
    weights in place, which verl does once per step, fails.
    """
    if layer.weight.is_meta or layer.weight.ndim == 2:
        layer.cpu_linear = torch.nn.functional.linear


def name_the_mapper_as_verl_does() -> None:
    """Give vLLM's `get_rename_mapper` (0.29 and later) its former name, by which verl calls it when it loads a LoRA adapter."""
    if not hasattr(WeightsMapper, "get_unstacked_mapper"):
        WeightsMapper.get_unstacked_mapper = WeightsMapper.get_rename_mapper


class CPUWorkerExtension(vLLMColocateWorkerExtension):
    """verl's worker extension; importing this module, which vLLM does in its worker process, has set plain linears."""


# Layers import the function from the module when they process their weights, so replacing it here is enough.
layer_utils.dispatch_cpu_unquantized_gemm = use_plain_linear
name_the_mapper_as_verl_does()
