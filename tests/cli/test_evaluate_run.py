"""`exgrpo evaluate` from the command line to the result files, with worker processes whose vLLM is a stand-in.

The stand-in answers with the last digit of the sampling seed, so every score is known beforehand.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipe.exgrpo.cli import evaluate
from verl_ext.evaluation import journal
from verl_ext.evaluation.questions import Item

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "data" / "toy" / "model"
QUESTIONS, SAMPLES, CHUNK = 6, 4, 5

STAND_IN = """
import os, time
from types import SimpleNamespace as Thing

SamplingParams = Thing

class LLM:
    def __init__(self, **arguments):
        self.llm_engine, self.waiting, self.made = self, [], 0
        if os.environ.get("STAND_IN") == "broken":
            raise RuntimeError("the stand-in is broken")

    def reset_prefix_cache(self):
        pass

    def add_request(self, request, prompt, params):
        self.waiting.append((request, prompt["prompt_token_ids"], params))

    def has_unfinished_requests(self):
        return bool(self.waiting)

    def step(self):
        request, ids, params = self.waiting.pop()  # last come, first served: results arrive out of order
        self.made += 1
        if str(self.made) == os.environ.get("STAND_IN_DIES_AT"):
            os.kill(os.getpid(), 9)
        if str(self.made) == os.environ.get("STAND_IN_HANGS_AT"):
            time.sleep(600)
        text = "\\\\boxed{%d}" % (params.seed % 10)
        response = Thing(token_ids=[0] * (params.seed % 7 + 1), finish_reason="stop", text=text)
        return [Thing(finished=True, request_id=request, prompt_token_ids=ids, outputs=[response])]
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """command(out, *more) -> the arguments of an evaluation of six questions, four samples each."""
    (tmp_path / "lib" / "vllm").mkdir(parents=True)
    (tmp_path / "lib" / "vllm" / "__init__.py").write_text(STAND_IN)
    (tmp_path / "lib" / "vllm" / "sampling_params.py").write_text("class RequestOutputKind:\n    FINAL_ONLY = 2\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "lib"), str(ROOT)]))
    rows = [
        {
            "data_source": "toy_modular_digit",
            "prompt": [{"role": "user", "content": f"Digit {i}?"}],
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": {"index": i, "question_id": f"q{i}", "n_samples": SAMPLES},
        }
        for i in range(QUESTIONS)
    ]
    data = tmp_path / "digits.parquet"
    pq.write_table(pa.Table.from_pylist(rows), data)

    def build(out: str, *more: str) -> list[str]:
        fixed = ["--model", TOY, "--data", data, "--out", tmp_path / out, "--max-tokens", 8, "--chunk", CHUNK]
        return [*map(str, fixed), "--json", *more]

    return build


@pytest.fixture
def run(command, capsys):
    """run(out, *more) -> (exit code, standard output, standard error)."""

    def execute(out: str, *more: str) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        evaluate.add_arguments(parser)
        code = evaluate.run(parser.parse_args(command(out, *more)))
        return code, *capsys.readouterr()

    return execute


def expected_mean() -> float:
    items = [Item("toy_modular_digit", f"q{i}", sample) for i in range(QUESTIONS) for sample in range(SAMPLES)]
    return sum(item.seed(0) % 10 == int(item.question[1:]) for item in items) / len(items)


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name.startswith(("generations", "results"))}


@pytest.fixture
def uninterrupted(run, tmp_path):
    code, output, _ = run("whole")
    assert code == 0
    assert json.loads(output)["benchmarks"]["toy_modular_digit"]["mean"] == pytest.approx(expected_mean())
    assert 0 < expected_mean() < 1
    for row in journal.read(tmp_path / "whole"):
        assert row["text"] == f"\\boxed{{{Item(row['benchmark'], row['question'], row['sample']).seed(0) % 10}}}"
    return files(tmp_path / "whole")


def test_every_way_to_the_end_gives_the_same_files(uninterrupted, run, tmp_path, monkeypatch):
    assert set(uninterrupted) == {"generations.jsonl", "results.json", "results.md"}
    assert len(uninterrupted["generations.jsonl"].splitlines()) == QUESTIONS * SAMPLES
    # Two processes.
    assert run("shards", "--data-parallel", "2")[0] == 0
    assert files(tmp_path / "shards") == uninterrupted
    # A worker killed in its third chunk of five, then the same command again.
    monkeypatch.setenv("STAND_IN_DIES_AT", "13")
    code, output, errors = run("resumed")
    assert (code, output) == (1, "")
    assert "a worker ended with exit code -9" in errors
    assert len((tmp_path / "resumed" / "generations.0.jsonl").read_bytes().splitlines()) == 2 * CHUNK
    monkeypatch.setenv("STAND_IN_DIES_AT", "16")  # would die again if it began anew: 14 samples are left
    assert run("resumed")[0] == 0
    assert files(tmp_path / "resumed") == uninterrupted
    # Once more: nothing is left to do, and no worker is started.
    monkeypatch.setenv("STAND_IN", "broken")
    assert run("resumed")[0] == 0
    assert files(tmp_path / "resumed") == uninterrupted
    # With the other grader, on the same generations.
    code, output, _ = run("resumed", "--grader", "oat-like")
    assert json.loads(output)["oat_like"]["toy_modular_digit"]["mean"] == pytest.approx(expected_mean())


def test_kill_of_the_whole_command_leaves_no_process_and_resumes(uninterrupted, command, run, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN_HANGS_AT", str(2 * CHUNK + 1))
    process = subprocess.Popen([sys.executable, "-m", "recipe.exgrpo.cli.evaluate", *command("killed")], cwd=ROOT)
    written = tmp_path / "killed" / "generations.0.jsonl"
    wait_until(lambda: written.exists() and written.read_bytes().count(b"\n") >= 2 * CHUNK)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    process.kill()
    process.wait()
    wait_until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))
    with written.open("ab") as file:
        file.write(b'{"item": 10, "bench')  # torn by the kill
    monkeypatch.delenv("STAND_IN_HANGS_AT")
    assert run("killed")[0] == 0
    assert files(tmp_path / "killed") == uninterrupted


def test_ctrl_c_stops_the_workers_and_says_how_to_go_on(command, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN_HANGS_AT", str(CHUNK + 1))
    line = [sys.executable, "-m", "recipe.exgrpo.cli.evaluate", *command("stopped")]
    process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    begun = tmp_path / "stopped" / "generations.0.jsonl"  # its log is there before the worker is
    wait_until(lambda: begun.exists() and begun.stat().st_size > 0)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped; re-run the same command to resume" in errors
    assert not any(worker.is_running() and worker.status() != "zombie" for worker in workers)


def test_another_evaluation_does_not_mix_in(run, tmp_path):
    assert run("out")[0] == 0
    before = files(tmp_path / "out")
    code, _, errors = run("out", "--temperature", "1.0", "--seed", "3")
    assert code == 2
    assert "holds generations made with other temperature, seed; use another --out" in errors
    assert files(tmp_path / "out") == before


def test_one_evaluation_at_a_time_in_a_folder(run, tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, errors = run("out")
    assert code == 2
    assert "another evaluation is running there" in errors


def test_a_model_that_does_not_start_is_reported_with_its_reason(run, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", "broken")
    before = psutil.Process().children()
    code, output, errors = run("out", "--data-parallel", "2")
    assert (code, output) == (1, "")
    assert "the stand-in is broken" in errors
    assert psutil.Process().children() == before


def test_dry_run_counts_and_touches_nothing(run, tmp_path):
    code, output, _ = run("out", "--dry-run", "--samples", "8", "--limit", "5")
    estimate = json.loads(output)
    assert code == 0
    assert estimate["benchmarks"] == {
        "toy_modular_digit": {"questions": 5, "available": 6, "samples": 8, "generations": 40}
    }
    assert (estimate["generations"], estimate["response_tokens_at_most"]) == (40, 320)
    assert estimate["hours_at_most_guess"] > 0
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_asked_as_its_run_asked_it(run, tmp_path):
    """The newest recorded start says which arguments the chat template got; the command line wins over it."""
    checkpoint = tmp_path / "run" / "global_step_8"
    shutil.copytree(ROOT / TOY, checkpoint / "actor" / "huggingface")
    (checkpoint / "actor" / "model_world_size_1_rank_0.pt").write_bytes(b"weights")
    template = "{{ messages[0].content }}{% if enable_thinking is false %}{{ '1' * 10 }}{% endif %}"
    (checkpoint / "actor" / "huggingface" / "chat_template.jinja").write_text(template)

    def tokens(*more: str) -> int:
        code, output, errors = run("out", "--dry-run", "--model", str(checkpoint), *more)
        assert code == 0, errors
        return json.loads(output)["prompt_tokens"]

    plain = tokens()
    for number, thinking in ((2, "true"), (10, "false")):
        record = tmp_path / "run" / "record" / f"start-{number:03d}"
        record.mkdir(parents=True)
        (record / "config.yaml").write_text(f"data: {{apply_chat_template_kwargs: {{enable_thinking: {thinking}}}}}\n")
    assert tokens() == plain + 10 * QUESTIONS * SAMPLES
    assert tokens("--chat-template-kwargs", "{}") == plain
    (record / "config.yaml").write_text("a: [")
    code, _, errors = run("out", "--dry-run", "--model", str(checkpoint))
    assert (code, "start-010/config.yaml is not YAML" in errors) == (2, True)


@pytest.mark.parametrize("text", ["[1]", "{", "enable_thinking=false"])
def test_arguments_of_the_template_are_a_json_object(run, text, capsys):
    with pytest.raises(SystemExit) as caught:
        run("out", "--chat-template-kwargs", text)
    assert caught.value.code == 2
    assert f"must be a JSON object, not {text}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--model", "nothing"], "--model nothing: neither a Hugging Face folder nor a checkpoint"),
        (["--data", "nowhere"], "--data nowhere: there is no parquet file"),
        (["--tokenizer", "tests"], "tests: the tokenizer cannot be loaded"),
        (["--top-p", "2"], "--top-p must be above 0 and at most 1"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(run, more, sentence):
    code, output, errors = run("out", *more)
    assert (code, output) == (2, "")
    assert sentence in errors
    assert "Traceback" not in errors


def wait_until(condition, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
