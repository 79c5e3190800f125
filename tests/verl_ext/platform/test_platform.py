"""The CPU platform: chosen only where there is no accelerator, and complete where it is chosen."""

import importlib.metadata
import os
import subprocess
import sys

import pytest
import torch

import verl_ext.platform as platform
from verl_ext.platform import PLUGIN, accelerator_visible, assert_platform, handed_on, prepare_environment

pytestmark = pytest.mark.verl


@pytest.fixture
def accelerator(monkeypatch):
    """accelerator(True/False): what the machine seems to have."""
    return lambda visible: monkeypatch.setattr(platform, "accelerator_visible", lambda *args: visible)


# The choice, which needs neither torch nor verl.


def test_a_machine_without_accelerator_gets_the_cpu_platform(accelerator):
    accelerator(False)
    env = {}
    assert prepare_environment(env)
    assert env["VERL_PLATFORM"] == "cpu"
    assert env["VERL_USE_EXTERNAL_MODULES"] == PLUGIN
    assert env["VERL_ENGINE_DEVICE"] == "cuda"
    assert int(env["OMP_NUM_THREADS"]) >= 1
    assert "HF_HUB_OFFLINE" not in env


def test_settings_that_are_there_are_kept_and_modules_appended_once(accelerator):
    accelerator(False)
    env = {"OMP_NUM_THREADS": "7", "VERL_USE_EXTERNAL_MODULES": "mine", "VLLM_CPU_KVCACHE_SPACE": "4"}
    assert prepare_environment(env)
    assert prepare_environment(env)
    assert env["VERL_USE_EXTERNAL_MODULES"] == f"mine,{PLUGIN}"
    assert (env["OMP_NUM_THREADS"], env["VLLM_CPU_KVCACHE_SPACE"]) == ("7", "4")
    blank = {"OMP_NUM_THREADS": ""}
    prepare_environment(blank)
    assert int(blank["OMP_NUM_THREADS"]) >= 1


@pytest.mark.parametrize(
    ("visible", "env"),
    [(True, {}), (False, {"VERL_PLATFORM": "nvidia"}), (False, {"RAY_ADDRESS": "10.0.0.1:6379"})],
)
def test_an_accelerator_another_platform_or_a_cluster_is_left_alone(accelerator, visible, env):
    accelerator(visible)
    before = dict(env)
    assert not prepare_environment(env)
    assert env == before


def test_the_cpu_can_be_chosen_on_any_machine(accelerator):
    accelerator(True)
    env = {"VERL_PLATFORM": " CPU "}
    assert prepare_environment(env)
    assert env["VERL_USE_EXTERNAL_MODULES"] == PLUGIN


def test_a_clusters_processes_are_handed_what_was_chosen(accelerator):
    """They have the environment of whoever started Ray on their machine."""
    env = {"VERL_PLATFORM": "cpu", "RAY_ADDRESS": "10.0.0.1:6379", "HOME": "/root", "OMP_NUM_THREADS": "1"}
    assert prepare_environment(env)
    assert handed_on(env) == {name: value for name, value in env.items() if name not in ("RAY_ADDRESS", "HOME")}
    assert handed_on(env)["VERL_USE_EXTERNAL_MODULES"] == PLUGIN


def test_choosing_after_verl_was_imported_is_an_error(accelerator, monkeypatch):
    accelerator(False)
    monkeypatch.setitem(sys.modules, "verl", object())
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)
    with pytest.raises(RuntimeError, match="after `import verl`"):
        prepare_environment({})


@pytest.mark.parametrize("node", ["nvidia0", "dxg", "kfd", "davinci3"])
@pytest.mark.parametrize(
    ("env", "build", "visible"),
    [({}, "2.11.0", True), ({}, "2.13.0+cpu", False), ({"CUDA_VISIBLE_DEVICES": ""}, "2.11.0", False)],
)
def test_accelerators_are_seen_by_their_device_nodes(tmp_path, monkeypatch, node, env, build, visible):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: build)
    assert not accelerator_visible(env, dev=tmp_path)
    (tmp_path / node).touch()
    assert accelerator_visible(env, dev=tmp_path) is visible


def test_driver_files_without_a_device_are_no_accelerator(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.11.0")
    (tmp_path / "nvidiactl").touch()
    (tmp_path / "nvidia-uvm").touch()
    assert not accelerator_visible({}, dev=tmp_path)


def test_choosing_imports_nothing_heavy():
    code = "import sys, verl_ext.platform as p; p.prepare_environment({}); print({'torch', 'ray', 'verl'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_plugin_does_nothing_unless_the_platform_is_chosen():
    code = (
        "import importlib.metadata as m; before = m.version; import verl_ext.platform.cpu;"
        "from verl.plugin.platform import PlatformRegistry; from torch.distributed.fsdp import CPUOffloadPolicy;"
        "print(PlatformRegistry.get('cpu'), m.version is before, CPUOffloadPolicy().pin_memory)"
    )
    env = {**os.environ, "VERL_PLATFORM": "nvidia", "VERL_USE_EXTERNAL_MODULES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "None True True"


# The platform, in this process (tests/conftest.py has chosen it).


@pytest.fixture
def device():
    from verl.utils import device

    if device.get_device_name() != "cpu":
        pytest.skip("this machine has an accelerator")
    return device


def test_verl_runs_on_the_cpu(device):
    assert_platform("cpu")
    with pytest.raises(RuntimeError, match=r"trainer.device is 'cuda' but verl runs on 'cpu'.*prepare_environment"):
        assert_platform("cuda")


def test_the_device_id_works_alone_and_after_the_name(device):
    assert torch.zeros(1).to(device.get_device_id()).device.type == "cpu"
    assert torch.device(f"{device.get_device_name()}:{device.get_device_id()}") == torch.device("cpu:0")


def test_the_device_module_answers_what_verl_asks(device):
    module = device.get_torch_device()
    assert module == torch.cpu
    assert module.is_available()
    assert module.max_memory_allocated() > 50e6  # bytes: torch alone takes more
    free, total = module.mem_get_info()
    assert 0 < free <= total
    assert module.memory_allocated() == module.memory_reserved(0) == 0
    module.empty_cache()
    module.synchronize()


def test_the_rng_state_round_trips(device):
    module = device.get_torch_device()
    state = module.get_rng_state()
    first = torch.rand(3)
    module.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


def test_verl_finds_fsdp_engines_and_shared_memory_transfer(device):
    from verl.workers.engine import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    assert issubclass(EngineRegistry.get_engine_cls("language_model", "fsdp2"), FSDPEngine)
    assert not device.is_support_ipc()


def test_vllms_cpu_build_passes_for_vllm(device):
    assert importlib.metadata.version("vllm") == importlib.metadata.version("vllm-cpu") + "+cpu"
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("no-such-distribution")


def test_a_reference_model_does_not_pin_memory(device):
    from torch.distributed.fsdp import CPUOffloadPolicy

    assert CPUOffloadPolicy(pin_memory=True).pin_memory is False


def test_linear_weights_stay_loadable_in_vllm(device):
    from vllm.model_executor.layers import utils

    from verl_ext.platform.vllm_worker import use_plain_linear

    assert utils.dispatch_cpu_unquantized_gemm is use_plain_linear
    layer = torch.nn.Linear(4, 3)
    use_plain_linear(layer, remove_weight=True)
    with torch.no_grad():
        layer.weight.fill_(2.0)  # as verl's weight sync does
    assert torch.equal(layer.cpu_linear(torch.ones(1, 4), layer.weight, None), torch.full((1, 3), 8.0))
    conv = torch.nn.Conv1d(1, 1, 3)
    use_plain_linear(conv, remove_weight=True)
    assert not hasattr(conv, "cpu_linear")
