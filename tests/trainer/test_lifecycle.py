"""Saving on a full disk, training data that changed, engines that died: what surrounds a run's steps."""

import errno
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from omegaconf import OmegaConf
from ray.exceptions import RayTaskError
from run_folders import cut, save

from recipe.exgrpo.runs.folder import Checkpoint
from recipe.exgrpo.trainer import lifecycle
from recipe.exgrpo.trainer.lifecycle import SaveError

# What torch's writer says of a full disk, from a run on one; verl's worker wraps nothing.
TORCH = "[enforce fail at inline_container.cc:664] . unexpected pos 7936 vs 7830"
DISK_FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError(TORCH),
    RuntimeError("basic_ios::clear: iostream error"),
    RayTaskError("save_checkpoint", "Traceback ...", RuntimeError(TORCH)),
]


def steps(root) -> list[str]:
    return sorted(path.name for path in root.glob("global_step_*"))


@pytest.mark.parametrize("keep", [None, 0])
def test_a_checkpoint_is_saved_and_nothing_else_happens(tmp_path, keep):
    save(tmp_path, 1)
    lifecycle.save_checkpoint(tmp_path, 2, keep, lambda: save(tmp_path, 2))
    assert steps(tmp_path) == ["global_step_1", "global_step_2"]


def test_only_the_newest_stays_after_restarts(tmp_path):
    """verl's own pruning forgets at a restart what was there; empty folders with data.pt stayed as well."""
    for step in (2, 4, 6):
        lifecycle.save_checkpoint(tmp_path, step, 1, lambda step=step: save(tmp_path, step))
        assert steps(tmp_path) == [f"global_step_{step}"]


@pytest.mark.parametrize("problem", DISK_FULL, ids=lambda problem: str(problem)[:30])
def test_a_full_disk_is_named_with_its_figures_and_the_torn_folder_is_gone(tmp_path, problem):
    before = Checkpoint(save(tmp_path, 2))

    def fails():
        cut(save(tmp_path, 4, track=False) / "actor/model_world_size_1_rank_0.pt")
        raise problem

    with pytest.raises(SaveError) as failure:
        lifecycle.save_checkpoint(tmp_path, 4, 1, fails)
    text = str(failure.value)
    assert text.startswith(
        f"{tmp_path}/global_step_4 was not saved, its disk is full: {before.bytes:,} bytes are needed, "
    )
    assert " were free" in text
    assert f"newest whole checkpoint is {before.path}" in text
    assert failure.value.__cause__ is problem
    assert steps(tmp_path) == ["global_step_2"]
    assert before.whole


def test_what_torch_says_of_a_full_disk_is_understood(tmp_path):
    def fails():
        save(tmp_path, 2, track=False)
        torch.save({"weight": torch.zeros(10**6)}, "/dev/full")

    with pytest.raises(SaveError, match="its disk is full"):
        lifecycle.save_checkpoint(tmp_path, 2, None, fails)
    assert steps(tmp_path) == []


def test_the_first_save_on_a_full_disk_says_what_is_known(tmp_path):
    def fails():
        (tmp_path / "global_step_2/actor").mkdir(parents=True)
        (tmp_path / "global_step_2/actor/model_world_size_1_rank_0.pt").write_bytes(b"x" * 1234)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SaveError, match=r"more than 1,234 bytes are needed.*no earlier checkpoint"):
        lifecycle.save_checkpoint(tmp_path, 2, None, fails)
    assert steps(tmp_path) == []


def test_another_error_is_what_it_was_and_leaves_the_folder(tmp_path):
    def fails():
        cut(save(tmp_path, 2) / "data.pt")
        raise RuntimeError("NCCL timeout")

    with pytest.raises(RuntimeError, match="NCCL"):
        lifecycle.save_checkpoint(tmp_path, 2, 1, fails)
    assert steps(tmp_path) == ["global_step_2"]


# ---- data


@pytest.mark.parametrize(("questions", "enough"), [(8, True), (9, True), (7, False), (0, False)])
def test_a_step_needs_its_number_of_questions(questions, enough):
    config = OmegaConf.create({"data": {"train_batch_size": 8, "max_prompt_length": 48}})
    if enough:
        lifecycle.enough_questions(config, questions)
        return
    with pytest.raises(lifecycle.DataError, match=rf"data\.train_batch_size is 8 but .* {questions} questions left"):
        lifecycle.enough_questions(config, questions)


def state(tmp_path, content: bytes, rows: int) -> dict:
    (tmp_path / "train.parquet").write_bytes(content)
    return lifecycle.data_state(OmegaConf.create({"data": {"train_files": f"{tmp_path}/train.parquet"}}), rows)


@pytest.mark.parametrize(
    ("content", "rows", "same"), [(b"a", 5, True), (b"b", 5, False), (b"a", 4, False), (b"b", 9, False)]
)
def test_a_position_belongs_to_the_data_it_was_taken_in(tmp_path, caplog, content, rows, same):
    lifecycle.write_data_state(tmp_path, state(tmp_path, b"a", 5))
    assert lifecycle.same_data(tmp_path, state(tmp_path, content, rows)) is same
    assert ("start at their beginning" in caplog.text) is not same


def test_a_checkpoint_that_does_not_say_is_believed(tmp_path):
    assert lifecycle.same_data(tmp_path, {"sha256": [], "rows": 0})
    assert json.loads(json.dumps(state(tmp_path, b"a", 5)))["rows"] == 5


# ---- engines


@pytest.fixture
def server():
    """server(code) -> the address of a server that answers /health with it."""
    started = []

    def start(code: int) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(code if self.path == "/health" else 404)
                self.end_headers()

            def log_message(self, *_):
                pass

        started.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"127.0.0.1:{started[-1].server_port}"

    yield start
    for each in started:
        each.shutdown()
        each.server_close()


def test_living_engines_are_no_problem(server):
    assert lifecycle.dead_engine([server(200), server(200)]) is None
    assert lifecycle.dead_engine([]) is None


def test_a_dead_engine_is_named_with_its_address(server):
    dead = server(503)
    assert lifecycle.dead_engine([server(200), dead]) == f"vLLM's engine at {dead} is dead (EngineDeadError)"


def test_a_server_that_is_gone_is_dead(server):
    address = server(200)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        gone = f"127.0.0.1:{closed.server_port}"
    assert lifecycle.dead_engine([address, gone]).startswith(f"vLLM's engine at {gone} is dead")


@pytest.mark.parametrize("code", [404, 500])
def test_other_answers_say_nothing_about_the_engine(server, code):
    assert lifecycle.dead_engine([server(code)]) is None


def test_a_server_that_does_not_answer_in_time_is_busy(monkeypatch):
    import socket

    monkeypatch.setattr(lifecycle, "HEALTH_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert lifecycle.dead_engine([f"127.0.0.1:{silent.getsockname()[1]}"]) is None
