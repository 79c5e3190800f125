"""Bytes that verl's engine keeps of each logit for the backward pass: what the memory estimate charges more when eager."""

import pytest
import torch

from recipe.exgrpo.checks.memory import EAGER, NO_FLASH

pytestmark = pytest.mark.verl
ROWS, VOCABULARY = 8, 4096
COMPILED = 2  # within LOGIT


def kept(function) -> float:
    """Bytes per logit that `function` of bfloat16 logits, cast as autocast does on a GPU, saves for its backward pass."""
    logits, storages = torch.randn(ROWS, VOCABULARY, dtype=torch.bfloat16, requires_grad=True), {}

    def save(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    alive: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        function(logits * 1.0)
    return sum(storages.values()) / (ROWS * VOCABULARY)


def test_eager_entropy_keeps_a_float32_copy_and_a_float32_softmax():
    """CUDA's autocast runs softmax and logsumexp in float32; the CPU's does not, so the cast is made here."""
    from verl.utils.torch_functional import entropy_from_logits

    assert kept(lambda logits: entropy_from_logits(logits.float())) == pytest.approx(EAGER, rel=0.01)


def test_compiled_entropy_keeps_the_bfloat16_logits_alone():
    """What `fsdp_config.use_torch_compile`, on by default, saves: the cast and the softmax are worked out again."""
    from verl.utils.torch_functional import entropy_from_logits

    compiled = torch.compile(lambda logits: entropy_from_logits(logits.float()), dynamic=True)
    assert kept(compiled) == pytest.approx(COMPILED, rel=0.01)


def test_log_probs_without_flash_attention_keep_a_float32_log_softmax():
    from verl.utils.torch_functional import logprobs_from_logits_naive

    labels = torch.zeros(ROWS, dtype=torch.long)
    assert kept(lambda logits: logprobs_from_logits_naive(logits.float(), labels)) == pytest.approx(NO_FLASH, rel=0.01)
