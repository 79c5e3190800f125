"""Run the verl stack on a machine without an accelerator, and leave accelerator machines alone.

`prepare_environment` is plain environment work and must run before `import verl`; the platform itself is in `cpu.py`
(loaded by verl, in every process) and `vllm_worker.py` (loaded by vLLM's worker).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from importlib import metadata
from pathlib import Path

logger = logging.getLogger(__name__)

PLUGIN = "verl_ext.platform.cpu"
WORKER_EXTENSION = "verl_ext.platform.vllm_worker.CPUWorkerExtension"

# Device nodes of NVIDIA, WSL2, AMD and Ascend drivers: looking at them neither imports torch nor initialises CUDA.
_DEVICE_NODES = ("nvidia[0-9]*", "dxg", "kfd", "davinci[0-9]*")


def accelerator_visible(env: MutableMapping[str, str] | None = None, dev: Path = Path("/dev")) -> bool:
    """Whether this process can use an accelerator: a driver's device node, not hidden, and a torch build that can."""
    env = os.environ if env is None else env
    if env.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return not _torch_is_cpu_build() and any(node for pattern in _DEVICE_NODES for node in dev.glob(pattern))


def _torch_is_cpu_build() -> bool:
    try:
        return metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False


def prepare_environment(env: MutableMapping[str, str] | None = None) -> bool:
    """Select the CPU platform where there is no accelerator; returns True if the CPU platform is selected.

    Call it in the driver before `import verl`: Ray hands the environment on to every process of a local cluster.
    Nothing is touched if an accelerator is visible, if `VERL_PLATFORM` names another platform, or if `RAY_ADDRESS`
    names a running cluster (its accelerators are elsewhere). `VERL_PLATFORM=cpu` selects the CPU explicitly.

    Raises:
        RuntimeError: verl was imported before, so that it would ignore the platform.
    """
    env = os.environ if env is None else env
    if not _wants_cpu(env):
        return False
    if "verl" in sys.modules and PLUGIN not in sys.modules:
        raise RuntimeError("prepare_environment() was called after `import verl`: call it first, verl reads it once.")
    env["VERL_PLATFORM"] = "cpu"
    env["VERL_USE_EXTERNAL_MODULES"] = _append(env.get("VERL_USE_EXTERNAL_MODULES", ""), PLUGIN)
    for name, value in _defaults().items():
        env[name] = env.get(name) or value  # set to nothing means the same as not set, to Ray and torch too
    return True


def handed_on(env: MutableMapping[str, str] | None = None) -> dict[str, str]:
    """What `prepare_environment` chose, for a cluster's processes: they have the environment of whoever started the cluster."""
    env = os.environ if env is None else env
    names = ("VERL_PLATFORM", "VERL_USE_EXTERNAL_MODULES", *_defaults())
    return {name: env[name] for name in names if name in env}


def _wants_cpu(env: MutableMapping[str, str]) -> bool:
    chosen = env.get("VERL_PLATFORM", "").strip().lower()
    if chosen:
        return chosen == "cpu"
    return "RAY_ADDRESS" not in env and not accelerator_visible(env)


def _append(modules: str, module: str) -> str:
    names = [name for name in modules.split(",") if name]
    return ",".join(names if module in names else [*names, module])


def _defaults() -> dict[str, str]:
    import psutil

    cores = len(os.sched_getaffinity(0))
    physical = psutil.cpu_count(logical=False) or cores
    return {
        # verl registers its FSDP engines for cuda and npu only; the cuda entry runs on any torch device.
        "VERL_ENGINE_DEVICE": "cuda",
        # GiB of KV cache per replica; vLLM's own default takes a share of all memory.
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # Ray sets 1 in every worker unless it is given.
        "OMP_NUM_THREADS": str(cores),
        # TransferQueue warns at each of its calls, hundreds of times per step, when it wants more than there are.
        "TQ_NUM_THREADS": str(min(8, physical)),
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray runs its workers at nice 15, for machines whose own work comes first; here they are the work.
        "RAY_worker_niceness": "0",
    }


def assert_platform(device: str) -> None:
    """Raise unless verl runs on `device` (`trainer.device`: "cpu", "cuda", ...) in this process.

    verl falls back to another platform in silence; a run that asked for one must not train on another.

    Raises:
        RuntimeError: verl's platform is not the one asked for.
    """
    from verl.plugin.platform import get_platform

    found = get_platform().device_name
    if found != device:
        raise RuntimeError(
            f"trainer.device is {device!r} but verl runs on {found!r} "
            f"(VERL_PLATFORM={os.environ.get('VERL_PLATFORM', '')!r}, "
            f"VERL_USE_EXTERNAL_MODULES={os.environ.get('VERL_USE_EXTERNAL_MODULES', '')!r}): "
            f"call verl_ext.platform.prepare_environment() before `import verl`, or set trainer.device to {found!r}."
        )
