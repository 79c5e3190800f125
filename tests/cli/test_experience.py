"""`exgrpo experience import` and `export`: real files in, states out, what others load, and what is said when it fails."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from toy_target import MODEL, write
from transformers import AutoModelForCausalLM

from data.make_toy import make_splits, row_of, write_parquet
from data.toy_task import render_question, render_solution
from recipe.exgrpo.checkpoint.checkpointer import ExperienceCheckpointer
from recipe.exgrpo.checkpoint.stored import Stored, problems_of
from recipe.exgrpo.cli.main import main
from recipe.exgrpo.core.buffer import ExperienceBuffer, Provenance, Response
from recipe.exgrpo.experience.tokenizers import load_tokenizer

QUESTIONS = make_splits(12, 1)[0]
GSM8K = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gsm8k" / "train.jsonl"


@pytest.fixture
def data(tmp_path):
    """Training questions of the toy task."""
    write_parquet([row_of(q, "train", i) for i, q in enumerate(QUESTIONS)], tmp_path / "train.parquet")
    return tmp_path / "train.parquet"


@pytest.fixture
def traces(tmp_path):
    """A perfect teacher's solutions of all of them, and a wrong one."""
    rows = [{"prompt": render_question(q), "response": render_solution(q)} for q in QUESTIONS]
    wrong = rows[0] | {"response": rows[0]["response"].replace("\\boxed{", "\\boxed{9")}
    return write(tmp_path / "teacher.jsonl", *rows, wrong)


@pytest.fixture
def command(capsys, data):
    """command(*args) -> (exit code, what is printed); `import` is for the toy run."""

    def call(action, *args):
        run = ["--data", data, "--model", MODEL, "--run", "hardware=tiny"] if action == "import" else []
        code = main(["experience", action, *map(str, args), *map(str, run)])
        return code, capsys.readouterr()

    return call


@pytest.fixture
def answer(command):
    def call(*args):
        code, printed = command(*args, "--json")
        assert code == 0, printed.err
        return json.loads(printed.out)

    return call


def test_traces_become_a_state_scored_by_the_start_policy(tmp_path, traces, answer):
    report = answer("import", traces, "--into", tmp_path / "state", "--source", "teacher")
    assert (report["read"], report["imported"], report["failures"], report["scored"]) == (13, 12, 1, 12)
    assert report["sources"] == {"teacher": 12}
    stored = Stored.open(tmp_path / "state")
    assert problems_of(tmp_path / "state") == []
    assert stored.fingerprint["policy"] == "import"
    assert stored.extra["imports"][0]["imported"] == 12
    buffer, tokenizer = stored.buffer(), load_tokenizer(tmp_path / "state" / "tokenizer")
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64)
    for row in buffer.candidates().row.tolist():
        found = buffer.trajectory(row)
        ids = torch.tensor([[*found.prompt_ids.tolist(), *found.token_ids.tolist()]])
        with torch.no_grad():
            log_probs = model(ids).logits[0, len(found.prompt_ids) - 1 : -1].log_softmax(-1)
        expected = log_probs.gather(1, torch.tensor(found.token_ids).long()[:, None])[:, 0]
        np.testing.assert_allclose(found.log_probs, expected.numpy(), atol=2e-5)
        assert found.token_ids[-1] == tokenizer.eos_token_id
        assert len(np.unique(found.log_probs)) > 5


def test_a_second_import_adds_to_the_state(tmp_path, traces, answer):
    state, more = tmp_path / "state", write(tmp_path / "more.jsonl", {"prompt": "no such question", "response": "x"})
    answer("import", traces, "--into", state, "--importance", "none")
    again = answer("import", traces, more, "--into", state, "--importance", "none", "--keep-failures")
    assert (again["duplicates"], again["imported"], again["unmatched"]) == (12, 1, 1)
    assert len(Stored.open(state).buffer().candidates()) == 13
    assert len(Stored.open(state).extra["imports"]) == 2


def test_bad_rows_leave_nothing_behind_unless_they_are_skipped(tmp_path, traces, command, answer):
    traces.write_text(traces.read_text() + '{"prompt": 3}\n')
    code, printed = command("import", traces, "--into", tmp_path / "state", "--importance", "none")
    assert code == 2
    assert f"{traces}, line 14:" in printed.err.replace("\n", " ")
    assert not (tmp_path / "state").exists()
    report = answer("import", traces, "--into", tmp_path / "state", "--importance", "none", "--skip-bad")
    assert (report["bad"], report["imported"]) == (1, 12)
    code, printed = command("import", traces, "--into", tmp_path / "state", "--importance", "none")
    assert (code, len(Stored.open(tmp_path / "state").buffer().candidates())) == (2, 12)


def test_what_cannot_be_is_one_sentence(tmp_path, traces, command, data):
    run = tmp_path / "global_step_5"
    ExperienceCheckpointer({"policy": "exgrpo"}).save(run, ExperienceBuffer(4), {})
    for args, reason in (
        (["import", tmp_path / "none.jsonl", "--into", tmp_path / "s"], "there is no such file"),
        (["import", traces, "--into", run], "belongs to a run"),
        (["export", tmp_path, "--out", tmp_path / "a.parquet"], "there is no experience state here"),
        (["export", run, "--out", tmp_path / "a.csv"], "name a .parquet or .jsonl file"),
        (["export", run, "--out", tmp_path / "a.parquet", "--as", "sft"], "needs --tokenizer"),
    ):
        code, printed = command(*args)
        assert (code, printed.out) == (2, "")
        assert reason in " ".join(printed.err.split())


def test_the_tables_say_what_happened(tmp_path, traces, command):
    code, printed = command(
        "import", traces, "--into", tmp_path / "state", "--importance", "none", "--source", "a\x1b[31mb"
    )
    assert code == 0
    for text in ("12 from a\\x1b[31mb", "refused by the reward", "pi_past = 1", "traces a second"):
        assert text in printed.out
    assert "\x1b[31m" not in printed.out
    main(["inspect", str(tmp_path / "state")])
    code, printed = command("export", tmp_path / "state", "--out", tmp_path / "all.jsonl")
    assert "12 rows (trajectories) of 12 trajectories" in " ".join(printed.out.split())


def test_into_parquet_and_back_is_the_same_state(tmp_path, traces, answer):
    first, table = tmp_path / "first", tmp_path / "all.parquet"
    answer("import", traces, "--into", first, "--keep-failures")
    answer("import", first, "--into", table, "--keep-failures")
    answer("import", table, "--into", tmp_path / "second", "--keep-failures", "--importance", "none")
    (a, meta_a), (b, meta_b) = (Stored.open(path).buffer().state() for path in (first, tmp_path / "second"))
    assert meta_a["origins"] == meta_b["origins"]
    for name, column in a.items():
        np.testing.assert_array_equal(b[name], column, err_msg=name)


# ---- export


@pytest.fixture
def trained(tmp_path):
    """A run's state: successes and failures of three questions, of two groups, scored in part."""
    buffer, tokenizer = ExperienceBuffer(8), load_tokenizer(MODEL)
    for i, question in enumerate(QUESTIONS[:3]):
        group = Provenance(buffer.new_group(), successes=2 * i + 1, size=8, advantage=0.5)
        name = row_ids()[i]
        for j, text in enumerate([render_solution(question), "2+2=4", "\\boxed{0}"][: 3 - i]):
            ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
            response = Response(ids, [-0.5] * len(ids), prompt_ids=[1])
            buffer.add(name, response, float(j == 0), 10 * i, provenance=group)
    buffer.mark_scored(buffer.candidates().row[:3], [0.1, 0.2, 0.3])
    folder = tmp_path / "global_step_30"
    ExperienceCheckpointer({"policy": "exgrpo", "tokenizer": "t", "group_size": 8}).save(folder, buffer, {})
    tokenizer.save_pretrained(folder / "actor" / "huggingface")
    return folder


def row_ids() -> list[str]:
    from data import toy_task

    return [toy_task.question_id(render_question(q)) for q in QUESTIONS]


def test_sft_messages_load_in_datasets_and_pandas(tmp_path, trained, data, answer):
    out = tmp_path / "sft.parquet"
    report = answer("export", trained, "--as", "sft", "--data", data, "--out", out)
    assert (report["rows"], report["trajectories"]) == (3, 6)
    rows = loaded(out)
    assert [row["messages"] for row in rows] == [
        [{"role": "user", "content": render_question(q)}, {"role": "assistant", "content": render_solution(q)}]
        for q in QUESTIONS[:3]
    ]
    assert [row["group_successes"] for row in rows] == [1, 3, 5]
    assert pd.read_parquet(out)["source"].tolist() == ["rollout"] * 3


def test_preferences_pair_a_success_with_a_failure_of_its_question(tmp_path, trained, data, answer):
    out = tmp_path / "pairs.parquet"
    assert answer("export", trained, "--as", "preferences", "--data", data, "--out", out, "--pairs", "5")["rows"] == 2
    first, second = loaded(out)
    assert first["prompt"] == [{"role": "user", "content": render_question(QUESTIONS[0])}]
    assert first["chosen"] == [{"role": "assistant", "content": render_solution(QUESTIONS[0])}]
    assert [row["rejected"][0]["content"] for row in (first, second)] == ["\\boxed{0}", "2+2=4"]
    assert (first["chosen_reward"], first["rejected_reward"]) == (1.0, 0.0)
    assert second["question"] == row_ids()[1]


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ([], [0, 1, 2, 3, 4, 5]),
        (["--successes", "2:4"], [3, 4]),
        (["--age", ":20"], [3, 4, 5]),
        (["--age", "30"], [0, 1, 2]),
        (["--length", ":6"], [1, 2, 4]),
        (["--entropy", "0.15:"], [1, 2]),
        (["--reward", "1"], [0, 3, 5]),
        (["--source", "rollout", "--reward", "0", "--entropy", ":0.25"], [1]),
    ],
)
def test_filters(tmp_path, trained, answer, filters, left):
    answer("export", trained, "--out", tmp_path / "some.parquet", *filters)
    assert pd.read_parquet(tmp_path / "some.parquet")["row"].tolist() == left


def test_an_exported_row_has_everything_that_is_known(tmp_path, trained, answer):
    answer("export", trained, "--out", tmp_path / "all.parquet")
    row = loaded(tmp_path / "all.parquet")[0]
    expected = {
        "question": row_ids()[0], "reward": 1.0, "birth_step": 0, "use_count": 0, "group": 0, "group_successes": 1,
        "group_size": 8, "advantage": 0.5, "source": "rollout", "behaviour": "measured", "temperature": 1.0,
        "state_group_size": 8, "tokenizer": "t", "text": render_solution(QUESTIONS[0]), "latest_count": None,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert math.isclose(row["entropy"], 0.1, rel_tol=1e-6)
    assert row["nll"] is None
    assert len(row["token_ids"]) == len(row["log_probs"]) == len(row["mask"]) == row["length"]


def test_an_unknown_source_and_a_range_that_goes_down_are_refused(tmp_path, trained, command):
    code, printed = command("export", trained, "--out", tmp_path / "a.parquet", "--source", "teacher")
    assert (code, "no trajectory has source 'teacher'; there are rollout" in " ".join(printed.err.split())) == (2, True)
    for text in ("3:1", "x:1", "nan"):
        with pytest.raises(SystemExit):
            command("export", trained, "--out", tmp_path / "a.parquet", "--age", text)


def loaded(path: Path) -> list[dict]:
    import datasets

    return list(datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=path.parent / "cache"))


@pytest.mark.parametrize("action", [[], ["import"], ["export"]])
def test_help(action, capsys):
    with pytest.raises(SystemExit) as done:
        main(["experience", *action, "--help"])
    assert done.value.code == 0
    assert "STATE" in capsys.readouterr().out or not action


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"{GSM8K} is not here")
def test_human_solutions_of_gsm8k_are_expert_traces(tmp_path, capsys):
    """Real text through a real reward: 150 solutions under the toy's tokenizer."""
    lines = GSM8K.read_text(encoding="utf-8").splitlines()[:150]
    source, data = tmp_path / "gsm8k.jsonl", tmp_path / "gsm8k.parquet"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [
        {
            "data_source": "gsm8k", "prompt": [{"role": "user", "content": row["question"]}], "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": row["answer"].rpartition("####")[2].strip().replace(",", "")},
            "extra_info": {"index": i, "question_id": f"g{i}"},
        }
        for i, row in enumerate(map(json.loads, lines))
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(data)
    limits = ["data.max_prompt_length=1024", "data.max_response_length=1024"]
    code = main([
        "experience", "import", str(source), "--into", str(tmp_path / "state"), "--data", str(data), "--importance", "none",
        "--json", "--run", "hardware=tiny", *limits,
    ])  # fmt: skip
    assert code == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["read"], report["questions"]) == (150, 150)
    assert report["imported"] >= 149
    assert os.path.isdir(tmp_path / "state" / "tokenizer")
