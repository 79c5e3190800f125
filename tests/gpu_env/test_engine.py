"""vLLM as GPU runs have it, without a GPU: how each backbone's engine is set. For `make test-gpu-env`; skipped elsewhere."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipe.exgrpo.checks.memory import GRAPHS_LEFT_OUT
from recipe.exgrpo.checks.shapes import KNOWN
from recipe.exgrpo.presets.compose import CONFIG_DIR, compose
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


# ---- verl's command line through vLLM's parser into its engine configuration, for an H100

ONE_CARD = ("qwen2.5-0.5b-instruct", "qwen2.5-1.5b", "qwen3-0.6b", "qwen3-1.7b", "smollm2-360m")  # scripts/start
BACKBONES = sorted(path.stem for path in (CONFIG_DIR / "backbone").glob("*.yaml"))
PRESETS = {
    **{name: [f"backbone={name}"] for name in BACKBONES if name not in ONE_CARD},
    **{name: [f"backbone={name}", "hardware=gpu_1x48"] for name in ONE_CARD},
    "24 GB": ["backbone=qwen3-0.6b", "hardware=gpu_1x24"],
    "24 GB, LoRA": ["backbone=qwen3-1.7b", "hardware=gpu_1x24_lora"],
    "8 x 40 GB": ["backbone=qwen2.5-math-7b", "hardware=gpu_40gb"],
    "one of 80 GB": ["backbone=qwen2.5-math-7b", "hardware=gpu_few"],
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """Facts of each preset's engine, from a process that takes itself for a machine with eight H100."""
    out = tmp_path_factory.mktemp("engines") / "facts.json"
    command = [sys.executable, Path(__file__).with_name("engine_config.py"), out]
    fresh = {name: value for name, value in os.environ.items() if not name.startswith(("VERL_", "VLLM_"))}
    done = subprocess.run(
        command, input=json.dumps(PRESETS), env=fresh, text=True, capture_output=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_engine_is_the_one_that_the_preset_describes(engines, preset):
    config = compose(PRESETS[preset])
    rollout, model, data = config.actor_rollout_ref.rollout, config.actor_rollout_ref.model, config.data
    assert engines[preset] == {
        "newer_runner": KNOWN[model.path]["model_type"] in GRAPHS_LEFT_OUT,
        "window": data.max_prompt_length + data.max_response_length,
        "dtype": "torch.bfloat16",
        "tensor_parallel": rollout.tensor_model_parallel_size,
        "memory_share": rollout.gpu_memory_utilization,
        "sleeps": True,
        "log_probs": "processed_logprobs",
        "graphs": "FULL_AND_PIECEWISE",
        "lora_rank": model.lora_rank,
        "batched_tokens": rollout.max_num_batched_tokens,
    }
