"""What `exgrpo check` says of `exgrpo.experience.init_from`: everything that would end a run's import, before Ray starts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import save
from toy_target import MODEL, K, imported, row_of, target, write

from recipe.exgrpo.checkpoint.checkpointer import ExperienceCheckpointer
from recipe.exgrpo.checkpoint.resume import tokenizer_fingerprint
from recipe.exgrpo.checks.experience import Imports, look_at_imports
from recipe.exgrpo.checks.findings import ERROR, NOTE, WARNING
from recipe.exgrpo.checks.memory import experience_bytes
from recipe.exgrpo.checks.preflight import inspect_run
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.cli.main import main
from recipe.exgrpo.core.buffer import ExperienceBuffer, Response
from recipe.exgrpo.experience.tokenizers import load_tokenizer
from recipe.exgrpo.presets.compose import compose

GOOD = {"question_id": "2+2", "response": "2+2=4"}


def found(tmp_path, *overrides):
    imports = look_at_imports(run_of(tmp_path, *overrides), readable=False)
    return [(finding.severity, finding.text) for finding in imports.findings]


def run_of(tmp_path, *overrides) -> Run:
    return Run.of(compose(["hardware=tiny", f"trainer.default_local_dir={tmp_path / 'run'}", *overrides]))


def init_from(*paths: Path) -> str:
    return f"exgrpo.experience.init_from=[{','.join(map(str, paths))}]"


@pytest.fixture
def settings(tmp_path) -> list[str]:
    """A run on the questions of `toy_target`."""
    data = write(tmp_path / "train.parquet", *(row_of(question) for question in ("1+3", "2+2", "3+1")))
    sizes = (f"actor_rollout_ref.rollout.n={K}", "data.max_prompt_length=64", "data.max_response_length=32")
    return [f"data.train_files={data}", f"data.val_files={data}", f"actor_rollout_ref.model.path={MODEL}", *sizes]


def test_nothing_is_said_without_it(tmp_path):
    assert found(tmp_path) == []


@pytest.mark.parametrize("name", ["none.jsonl", "table.csv", "folder"])
def test_what_is_not_there_is_an_error(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "table.csv").write_text("a\n")
    ((severity, text),) = found(tmp_path, init_from(tmp_path / name))
    assert severity == ERROR
    assert str(tmp_path / name) in text
    assert "exgrpo experience import" in text


def test_a_run_that_resumes_needs_no_traces(tmp_path):
    save(tmp_path / "run", 3)
    assert found(tmp_path, "exgrpo.experience.init_from=[gone.jsonl]") == []


def test_a_method_that_keeps_nothing_reads_nothing(tmp_path):
    ((severity, text),) = found(tmp_path, "method=on_policy", "exgrpo.experience.init_from=[gone.jsonl]")
    assert (severity, "keeps no experience" in text) == (WARNING, True)


def test_luffy_without_traces_is_the_baseline(tmp_path):
    ((severity, text),) = found(tmp_path, "method=luffy", "exgrpo.experience.init_from=[]")
    assert (severity, "trains as on-policy" in text) == (WARNING, True)


def test_the_check_of_a_run_says_it(tmp_path):
    config = compose(["hardware=tiny", f"exgrpo.experience.init_from=[{tmp_path / 'none.jsonl'}]"])
    assert any("init_from" in finding.text for finding in inspect_run(config))


# ---- rows


BAD = {
    "as it stands": ({"question_id": "2+2"}, "no response"),
    "by the tokenizer": ({"question_id": "2+2", "response": "4<|im_start|>user"}, "special token <|im_start|>"),
    "by its vocabulary": ({"question_id": "2+2", "token_ids": [5000]}, "outside the tokenizer's 290"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_found_by_file_and_line(tmp_path, settings, kind):
    row, reason = BAD[kind]
    first, second = write(tmp_path / "a.jsonl", GOOD, row, GOOD), write(tmp_path / "b.jsonl", "{")
    imports = look_at_imports(run_of(tmp_path, *settings, init_from(first, second)), readable=True)
    assert [finding.severity for finding in imports.findings] == [ERROR, ERROR]
    one, other = (finding.text for finding in imports.findings)
    assert one.startswith(f"exgrpo.experience.init_from: {first}, line 2: ")
    assert reason in one
    assert "exgrpo.experience.skip_bad=true" in one
    assert f"{second}, line 1" in other
    skipping = run_of(tmp_path, *settings, init_from(first, second), "exgrpo.experience.skip_bad=true")
    assert look_at_imports(skipping, readable=True).findings == ()


def test_without_questions_rows_are_parsed_all_the_same(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD, {"question_id": 7})
    ((severity, text),) = found(tmp_path, init_from(path))
    assert (severity, f"{path}, line 2: no response" in text) == (ERROR, True)
    assert found(tmp_path, init_from(path), "exgrpo.experience.skip_bad=true") == []


def test_a_damaged_state_is_found(tmp_path, settings):
    buffer = ExperienceBuffer(K)
    buffer.record("2+2", 1)
    buffer.add("2+2", Response([5, 6, 0], [-0.5] * 3), 1.0, 1)
    fingerprint = {"tokenizer": tokenizer_fingerprint(load_tokenizer(MODEL)), "policy": "exgrpo", "group_size": K}
    state = tmp_path / "other/global_step_3"
    ExperienceCheckpointer(fingerprint).save(state, buffer, {})
    run = run_of(tmp_path, *settings, init_from(state))
    assert look_at_imports(run, readable=True).findings == ()
    damaged = max((state / "experience").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    damaged.write_bytes(b"\x00" * damaged.stat().st_size)
    (finding,) = look_at_imports(run, readable=True).findings
    assert (finding.severity, str(damaged) in finding.text) == (ERROR, True)


def test_a_reward_that_is_a_model_cannot_grade_traces(tmp_path, settings):
    reward = ("reward.custom_reward_function.path=null", "reward.reward_model.enable=true")
    run = run_of(tmp_path, *settings, init_from(write(tmp_path / "a.jsonl", GOOD)), *reward)
    (finding,) = look_at_imports(run, readable=True).findings
    assert "traces cannot be graded" in finding.text


def test_a_template_that_writes_nothing_is_left_to_the_tokenizers_checks(tmp_path, settings):
    path = write(tmp_path / "a.jsonl", GOOD)
    broken = "actor_rollout_ref.model.custom_chat_template='{{ raise_exception(1) }}'"
    run = run_of(tmp_path, *settings, init_from(path), broken)
    assert look_at_imports(run, readable=True) == Imports()


def test_the_command_and_its_exit_code(tmp_path, settings, capsys):
    path = write(tmp_path / "a.jsonl", GOOD, {"question_id": 7})
    place = f"trainer.default_local_dir={tmp_path / 'run'}"
    assert main(["check", "--no-verl", "hardware=tiny", place, *settings, init_from(path)]) == 2
    assert f"{path}, line 2: no response" in capsys.readouterr().out


# ---- memory


def test_memory_of_what_comes_in_is_what_it_takes_when_it_is_stored(tmp_path, settings):
    """All but what is no trace of this run, or there twice."""
    rows = [GOOD, GOOD, {"question_id": "1+3", "response": "=4"}, {"question_id": "9+9", "response": "=18"}]
    path = write(tmp_path / "a.jsonl", *rows)
    imports = look_at_imports(run_of(tmp_path, *settings, init_from(path)), readable=True)
    buffer, report = imported(path, on=target())
    assert report.imported == 2
    assert imports.bytes == buffer.nbytes > 0


def test_the_estimate_of_memory_counts_it(tmp_path, settings):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(GOOD | {"response": f"{i:030d}"}) + "\n" for i in range(3000)))
    few = ("data.train_batch_size=2", "actor_rollout_ref.actor.ppo_mini_batch_size=2", "trainer.device=cuda")
    overrides = ["hardware=tiny", f"trainer.default_local_dir={tmp_path / 'run'}", *settings, *few]
    run = Run.of(compose(overrides))
    more = replace(run, imported=1 << 30)
    assert experience_bytes(more) - experience_bytes(run) == 1 << 30
    bounded = Run.of(compose([*overrides, "exgrpo.buffer.max_bytes=1000"]))
    assert experience_bytes(replace(bounded, imported=1 << 30)) == 1000

    def note(*more: str) -> str:
        findings = inspect_run(compose([*overrides, *more]))
        (text,) = [f.text for f in findings if f.severity == NOTE and f.text.startswith("host memory")]
        return text

    assert "init_from" not in note()
    assert "(at the published rate of storing, and 1 MiB from exgrpo.experience.init_from)" in note(init_from(path))
