"""The entry point: what it refuses before anything is touched, and how each kind of end is told; Ray's part is a stand-in."""

import os
import signal
import sys
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_folders import save

from recipe.exgrpo import main as entry
from recipe.exgrpo.checks.findings import PreflightError
from recipe.exgrpo.presets.compose import ROOT
from recipe.exgrpo.runs import lock, stopping
from recipe.exgrpo.runs.folder import TRACKER
from verl_ext.metrics_log import JsonlLogger


@pytest.fixture
def run(tmp_path):
    """The run folder."""
    return tmp_path / "run"


@pytest.fixture
def arguments(tmp_path, run):
    """A tiny run with which nothing is wrong."""
    rows = [
        {
            "data_source": "toy",
            "prompt": [{"role": "user", "content": f"{i} + 1 = ?"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(i + 1)},
            "extra_info": {"split": "train", "index": i, "question_id": f"id{i}"},
        }
        for i in range(16)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    files = [f"data.{split}_files={tmp_path}/data.parquet" for split in ("train", "val")]
    model = f"actor_rollout_ref.model.path={ROOT / 'data/toy/model'}"
    return ["hardware=tiny", model, *files, f"trainer.default_local_dir={run}", "trainer.total_training_steps=4"]


@pytest.fixture
def start(monkeypatch, arguments, capsys):
    """start(*overrides, train=function) -> exit code and what was written last, with `train` in the place of Ray's part."""
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}

    def begin(*overrides, train=None) -> tuple[int, str]:
        started = types.ModuleType("recipe.exgrpo.trainer.task_runner")
        started.train = train or (lambda config, on_start: pytest.fail("was started"))
        monkeypatch.setitem(sys.modules, started.__name__, started)
        code = entry.main([*arguments, *overrides])
        return code, (capsys.readouterr().err.strip().splitlines() or [""])[-1]

    # Forking and choosing a platform are for a process of its own.
    monkeypatch.setattr(entry, "prepare_environment", lambda: False)
    monkeypatch.setattr(entry, "_require_device", lambda device, on_cpu: None)
    monkeypatch.setattr(entry, "_nodes", lambda: [{"Alive": True, "Resources": {"CPU": 16, "GPU": 1}}])
    monkeypatch.setattr(entry, "quiet", dict)
    monkeypatch.setattr("recipe.exgrpo.checks.verl.validate", lambda config: None)
    monkeypatch.setattr(entry, "_end_ray", lambda: None)
    yield begin
    for number, handler in before.items():
        signal.signal(number, handler)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps(run: Path, last: int):
    """A training that logs steps up to `last` and saves it."""

    def train(config, on_start):
        on_start()
        log = JsonlLogger(run / "metrics.jsonl")
        for step in range(1, last + 1):
            log.log({"a": 1}, step)
        save(run, last)

    return train


# ---- refused


@pytest.mark.parametrize("content", [None, "", "9"])
def test_a_start_that_would_destroy_a_run_touches_nothing(start, run, content):
    save(run, 4)
    JsonlLogger(run / "metrics.jsonl").log({"a": 1}, 4)
    (run / TRACKER).unlink()
    if content is not None:
        (run / TRACKER).write_text(content)
    before = contents(run)
    code, text = start()
    assert code == 2
    assert "global_step_4" in text
    assert contents(run) == before


def test_a_second_start_touches_nothing(start, run):
    with lock.hold(run):
        record = (run / lock.NAME).read_text().replace(str(os.getpid()), "1")
        (run / lock.NAME).write_text(record)
        before = contents(run)
        code, text = start()
        assert code == 2
        assert "in use by process 1" in text
        assert contents(run) == before


def test_a_folder_that_cannot_be_written_is_one_sentence(start, tmp_path):
    (tmp_path / "file").write_text("")
    code, text = start(f"trainer.default_local_dir={tmp_path}/file/run")
    assert code == 2
    assert text.startswith("trainer.default_local_dir: ")
    assert "set RUN to another" in text


def test_bad_traces_are_refused_before_anything_is_started_or_touched(start, run, tmp_path):
    """As `exgrpo experience import` refuses them, with the same exit code."""
    path = tmp_path / "traces.jsonl"
    path.write_text('{"question_id": "id0", "response": "1"}\n{"question_id": "id1"}\n')
    code, text = start(f"exgrpo.experience.init_from=[{path}]")
    assert code == 2
    assert text.startswith(f"exgrpo.experience.init_from: {path}, line 2: no response")
    assert not run.exists()


@pytest.mark.parametrize("argument", ["exgrpo.rhoo=1", "--cfg", "exgrpo.rho=7", "trainer.save_frequency=3"])
def test_a_configuration_that_is_none_makes_no_folder(start, run, argument):
    code, text = start(argument)
    assert code == 2
    assert text
    assert not run.exists()


# ---- ended


def test_a_finished_run_says_so_and_leaves_its_record(start, run):
    code, text = start(train=steps(run, 4))
    assert (code, text.split(",")[0]) == (0, "done")
    assert f"exgrpo report {run}" in text
    assert (run / "record/start-000/config.yaml").is_file()
    assert (run / lock.NAME).read_text() == ""


def test_a_run_that_was_stopped_has_its_own_code(start, run):
    def train(config, on_start):
        on_start()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.requested(run)
        steps(run, 2)(config, on_start)

    code, text = start(train=train)
    assert code == stopping.STOPPED == 75
    assert text.startswith("stopped after step 2 of 4")
    assert "the same command resumes" in text
    assert not stopping.requested(run)


def test_a_second_signal_has_the_code_of_a_shell(start, run):
    def train(config, on_start):
        on_start()
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)

    assert start(train=train)[0] == 128 + signal.SIGTERM


def test_a_failed_run_ends_with_its_cause(start, run):
    def train(config, on_start):
        steps(run, 2)(config, on_start)
        raise RuntimeError("vLLM's engine at 127.0.0.1:1 is dead (EngineDeadError)")

    code, text = start(train=train)
    assert code == 1
    assert f"{run}/global_step_2; the same command resumes from it" in text
    assert text.endswith("Cause: RuntimeError: vLLM's engine at 127.0.0.1:1 is dead (EngineDeadError)")


def test_what_a_run_that_died_was_asked_is_forgotten(start, run):
    run.mkdir()
    (run / stopping.NAME).touch()

    def train(config, on_start):
        assert not stopping.requested(run)
        steps(run, 4)(config, on_start)

    assert start(train=train)[0] == 0


def test_settings_for_rays_processes_do_not_replace_what_is_set(start, run, monkeypatch):
    monkeypatch.setattr(entry, "quiet", lambda: {"VLLM_LOGGING_LEVEL": "ERROR"})
    monkeypatch.setattr(entry, "prepare_environment", lambda: True)
    monkeypatch.setattr(entry.fork_server, "start", lambda: "fork")
    seen = []

    def train(config, on_start):
        seen.append(config.ray_kwargs.ray_init.runtime_env)
        steps(run, 4)(config, on_start)

    start(train=train)
    start("ray_kwargs.ray_init.runtime_env.py_executable=mine", "trainer.total_training_steps=5", train=train)
    assert [env.py_executable for env in seen] == ["fork", "mine"]
    assert all(env.env_vars.VLLM_LOGGING_LEVEL == "ERROR" for env in seen)


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_what_a_ray_of_our_own_is_told_is_left_to_a_cluster(start, run, monkeypatch, address):
    """Its nodes have said what they have, Ray refuses the keys; and its workers cannot be forked from our process."""
    monkeypatch.setattr(entry, "prepare_environment", lambda: True)
    monkeypatch.setattr(entry.fork_server, "start", lambda: "fork")
    monkeypatch.setattr(entry, "handed_on", lambda: {"VERL_PLATFORM": "cpu"})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    seen = []

    def train(config, on_start):
        seen.append(config.ray_kwargs.ray_init)
        steps(run, 4)(config, on_start)

    assert start(train=train)[0] == 0
    [told] = seen
    own = (told.num_cpus, told.num_gpus, told.object_store_memory, told.runtime_env.py_executable)
    assert own == ((None, None, None, None) if address else (16, 1, 500_000_000, "fork"))
    assert told.runtime_env.env_vars.get("VERL_PLATFORM") == ("cpu" if address else None)


def test_a_cluster_that_cannot_hold_the_reservations_is_refused(start, run, monkeypatch):
    """Ray would wait for CPUs that no node has, without a word."""
    monkeypatch.setattr(entry, "_nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4, "GPU": 1}}])
    code, last = start(train=steps(run, 2))
    assert (code, last.startswith("trainer.nnodes is 1 and 0 of Ray's nodes offer")) == (2, True)


@pytest.mark.parametrize(
    ("device", "on_cpu", "wanted"), [("cuda", True, "make setup-gpu"), ("cpu", False, "make setup,")]
)
def test_a_device_that_this_environment_does_not_have_is_refused(device, on_cpu, wanted):
    with pytest.raises(PreflightError, match=wanted):
        entry._require_device(device, on_cpu)
    entry._require_device(device, not on_cpu)
