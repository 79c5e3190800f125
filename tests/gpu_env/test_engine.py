"""vLLM as GPU runs have it, without a GPU: which engine code each backbone gets. For `make test-gpu-env`; skipped elsewhere."""

from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipe.exgrpo.checks.memory import GRAPHS_LEFT_OUT
from verl_ext.packages import installed

pytestmark = pytest.mark.skipif(installed("vllm") != "0.24.0", reason="the GPU environment's vLLM (make setup-gpu)")


def test_what_is_installed_is_the_lock():
    lines = (Path(__file__).parents[2] / "requirements-gpu.lock").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {name: metadata.version(name).partition("+")[0] for name in pins} == pins


@pytest.mark.parametrize(
    ("family", "architecture"),
    [
        ("qwen2", "Qwen2"),
        ("qwen3", "Qwen3"),
        ("llama", "Llama"),
        ("mistral", "Mistral"),
    ],
)
def test_the_newer_runner_is_that_of_the_families_whose_graphs_come_on_top(family, architecture):
    from vllm.config.vllm import VllmConfig

    config = SimpleNamespace(
        model_config=SimpleNamespace(runner_type="generate", architectures=[f"{architecture}ForCausalLM"])
    )
    newer = VllmConfig._is_default_v2_model_runner_model(config)
    assert newer == (family in GRAPHS_LEFT_OUT)


def test_the_newer_runner_leaves_its_graphs_out():
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    assert GPUModelRunner.profile_cudagraph_memory(SimpleNamespace()) == 0


def test_torch_is_the_cuda_13_build():
    import torch

    assert torch.version.cuda == "13.0"
