"""data/prepare_prompts.py: instructions without gold answers."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from recipe.exgrpo.checks.data import data_findings
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.presets.compose import ROOT
from recipe.exgrpo.presets.compose import compose as compose_run


def prepare(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "data/prepare_prompts.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "chat.jsonl"
    questions = [f"Write {i} haiku." for i in range(10)] + ["Write  3 haiku.", "  "]
    path.write_text("".join(json.dumps({"turn": {"text": text}}) + "\n" for text in questions))
    return path


def test_distinct_instructions_are_split_by_content(source, tmp_path):
    def split(out):
        run = prepare("--source", source, "--question-key", "turn.text", "--held-out", 3, "--out", out)
        assert run.returncode == 0, run.stderr
        parts = [pq.read_table(path).to_pylist() for path in (out, out.with_stem(out.stem + "_heldout"))]
        return [{row["extra_info"]["question_id"] for row in part} for part in parts]

    train, held_out = split(tmp_path / "a.parquet")
    assert (len(train), len(held_out)) == (7, 3)
    assert not train & held_out
    lines = source.read_text().splitlines()
    source.write_text("\n".join(reversed(lines)) + "\n")
    assert split(tmp_path / "b.parquet") == [train, held_out], "the order of rows does not matter"


def test_the_files_pass_the_check_of_the_continuous_run(source, tmp_path):
    out = tmp_path / "chat.parquet"
    prepare("--source", source, "--question-key", "turn.text", "--held-out", 3, "--out", out)
    files = [f"data.train_files={out}", f"data.val_files={tmp_path}/chat_heldout.parquet", "data.train_batch_size=4"]
    assert list(data_findings(Run.of(compose_run(["backbone=qwen2.5-7b", "method=continuous", *files])))) == []


def test_bad_input_is_one_sentence_and_exit_code_2(source, tmp_path):
    common = ("--source", source, "--out", tmp_path / "x.parquet", "--question-key")
    for arguments, word in ((("text",), "no key 'text'"), (("turn.text", "--held-out", 10), "10 distinct questions")):
        result = prepare(*common, *arguments)
        assert result.returncode == 2
        assert word in result.stderr
    assert not (tmp_path / "x.parquet").exists()


@pytest.mark.parametrize(("row", "key"), [('{"q": "\\ud800"}', "q"), ('{"q": {"r": ["a \\udfff"]}}', "q.r")])
def test_half_a_character_is_one_sentence_and_exit_code_2(row, key, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"q": {"r": "whole"}}\n' * (key == "q.r") + row + "\n")
    result = prepare("--source", tmp_path / "x.jsonl", "--question-key", key, "--out", tmp_path / "o.parquet")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert f"key '{key}' holds \\ud" in result.stderr
