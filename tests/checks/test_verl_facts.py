"""What findings say of verl, seen in verl: fused kernels on a head that FSDP2 wraps, and the names that a tied model sends."""

import contextlib

import pytest
import torch

pytestmark = pytest.mark.verl


@pytest.fixture
def sharded(tmp_path):
    """sharded(tied=..., fused=...) -> the toy model as verl's FSDP2 engine wraps it, on one gloo rank."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from transformers import AutoConfig, AutoModelForCausalLM
    from verl.models.transformers.monkey_patch import apply_monkey_patch
    from verl.utils.fsdp_utils import apply_fsdp2

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    patched = []

    def make(*, tied: bool, fused: bool):
        config = AutoConfig.from_pretrained("data/toy/model", tie_word_embeddings=tied, attn_implementation="sdpa")
        model = AutoModelForCausalLM.from_config(config)
        patched.append((type(model), type(model).forward))
        apply_monkey_patch(model, use_remove_padding=True, use_fused_kernels=fused, fused_kernels_backend="torch")
        apply_fsdp2(model, {"mesh": init_device_mesh("cpu", (1,)), "reshard_after_forward": True}, {})
        return model

    yield make
    for kind, forward in reversed(patched):
        kind.forward = forward
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("tied", "outcome"),
    [(True, contextlib.nullcontext()), (False, pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"))],
)
def test_fused_kernels_fail_on_untied_embeddings(sharded, tied, outcome):
    tokens = torch.arange(8)[None]
    with outcome:
        made = sharded(tied=tied, fused=True)(
            input_ids=tokens, position_ids=tokens, temperature=1.0, use_cache=False, return_dict=True
        )
        assert made.log_probs.shape == (1, 8)


def test_a_tied_model_sends_its_embedding_twice_and_in_float32(sharded):
    state = sharded(tied=True, fused=False).state_dict()
    first, *_, last = state
    assert (first, last) == ("model.embed_tokens.weight", "lm_head.weight")
    assert {value.dtype for value in state.values()} == {torch.float32}
