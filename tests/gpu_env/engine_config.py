"""What vLLM makes of a run's settings on an H100, without one: `python engine_config.py OUT`, a process of its own.

Reads names and overrides as JSON, writes facts. The way is verl's: its server writes the command line, vLLM parses it and
configures the engine; where verl would start it, this ends. The driver is an empty library, NVML answers for eight cards, and
model folders have the true sizes and no weights.
"""

import asyncio
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import transformers
from omegaconf import OmegaConf

from recipe.exgrpo.checks.shapes import KNOWN
from recipe.exgrpo.presets.compose import ROOT, compose

GIB = 2**30
H100 = {
    "nvmlInit": None,
    "nvmlShutdown": None,
    "nvmlDeviceGetCount": 8,
    "nvmlDeviceGetHandleByIndex": 0,
    "nvmlDeviceGetCudaComputeCapability": (9, 0),
    "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
    "nvmlDeviceGetUUID": "GPU-0",
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * GIB, free=80 * GIB, used=0),
}


def fake_driver(folder: Path) -> None:
    """An empty libcuda, of which vLLM's kernels, loaded but not called, need nothing."""
    library = folder / "libcuda.so.1"
    command = ["cc", "-shared", f"-Wl,-soname,{library.name}", "-xc", "/dev/null", "-o", str(library)]
    subprocess.run(command, check=True)
    ctypes.CDLL(str(library))
    sys.setdlopenflags(os.RTLD_LAZY)
    # As in an actor of Ray without a card: vLLM then takes Triton on its word, instead of looking for a driver that works.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def fake_h100() -> None:
    import vllm.platforms
    from vllm.third_party import pynvml

    for function, answer in H100.items():
        setattr(pynvml, function, lambda *_, answer=answer: answer)
    vllm.platforms._current_platform = None  # which importing vLLM has looked for, to know whether memory can be pinned


def model_folder(hub_id: str, folder: Path) -> Path:
    """The config.json of a known model beside the toy task's tokenizer."""
    sizes = dict(KNOWN[hub_id])
    config = transformers.AutoConfig.for_model(sizes.pop("model_type"), **sizes, dtype="bfloat16")
    config.architectures = [type(config).__name__.replace("Config", "ForCausalLM")]
    config.save_pretrained(folder)
    for file in (ROOT / "data/toy/model").glob("*"):
        if "token" in file.name or file.suffix == ".jinja":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def parsed(config):
    """The arguments that vLLM's parser reads from verl's command line."""
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.rollout.replica import RolloutMode
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer

    class Server(vLLMHttpServer):
        async def run_server(self, args):
            self.arguments = args

    rollout, model = config.actor_rollout_ref.rollout, config.actor_rollout_ref.model
    server = Server(
        config=omega_conf_to_dataclass(rollout),
        model_config=omega_conf_to_dataclass(model),
        rollout_mode=RolloutMode.HYBRID,
        workers=[None] * rollout.tensor_model_parallel_size,
        replica_rank=0,
        node_rank=0,
        gpus_per_node=rollout.tensor_model_parallel_size,
        nnodes=1,
        cuda_visible_devices=",".join(map(str, range(rollout.tensor_model_parallel_size))),
    )
    asyncio.run(server.launch_server())
    return server.arguments


def facts(overrides: list[str], folder: Path) -> dict:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    config = compose(overrides)
    OmegaConf.set_struct(config, False)
    model = config.actor_rollout_ref.model
    model.path, model.tokenizer_path = str(model_folder(model.path, folder)), None
    model.override_config = {"attn_implementation": "sdpa"}  # the trainer's, whose default looks for flash-attn
    arguments = AsyncEngineArgs.from_cli_args(parsed(config))
    engine = arguments.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    return {
        "newer_runner": engine.use_v2_model_runner,
        "window": engine.model_config.max_model_len,
        "dtype": str(engine.model_config.dtype),
        "tensor_parallel": engine.parallel_config.tensor_parallel_size,
        "memory_share": engine.cache_config.gpu_memory_utilization,
        "sleeps": engine.model_config.enable_sleep_mode,
        "log_probs": engine.model_config.logprobs_mode,
        "graphs": engine.compilation_config.cudagraph_mode.name,
        "lora_rank": engine.lora_config.max_lora_rank if engine.lora_config else 0,
        "batched_tokens": engine.scheduler_config.max_num_batched_tokens,
    }


def main(out: Path) -> None:
    import ray

    ray.get_runtime_context = lambda: SimpleNamespace(get_job_id=lambda: "00")  # verl's server is an actor's class
    asked, found = json.load(sys.stdin), {}
    with tempfile.TemporaryDirectory() as folder:
        fake_driver(Path(folder))
        fake_h100()
        for name, overrides in asked.items():
            found[name] = facts(overrides, Path(folder) / name)
    out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
