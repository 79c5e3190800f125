"""`exgrpo inspect`: every option on a small checkpoint, without Ray, verl or a model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from recipe.exgrpo.checkpoint.checkpointer import ExperienceCheckpointer
from recipe.exgrpo.checkpoint.stored import Stored
from recipe.exgrpo.cli.main import main
from recipe.exgrpo.core.buffer import ExperienceBuffer, Origin, Provenance, Response, prompt_hash
from recipe.exgrpo.core.buffer.inspection import distribution, regrade, trajectories
from verl_ext.text import printable

WORDS = ["<pad>", "the", "answer", "is", "\\boxed{4}", "\\boxed{5}", "\x1b[31mred", "[bold]"]
PRINT = {"model": "tiny", "tokenizer": "words", "group_size": 4, "policy": "exgrpo"}


@pytest.fixture
def root(tmp_path):
    """Steps 5 and 10 of a run; at 10 question b moved from 2 to 3, c retired, and d came."""
    buffer, checkpointer = ExperienceBuffer(4), ExperienceCheckpointer(PRINT)
    for name, count in (("a", 1), ("b", 2), ("c", 3)):
        buffer.record(name, count)
        buffer.add(name, Response([1, 2, 3, 4], [-0.5] * 4), 1.0, step=2)
    buffer.add("a", Response([1, 2, 3, 5], [-0.25] * 4), 1.0, step=4)
    checkpointer.save(tmp_path / "global_step_5", buffer, {})
    buffer.record("b", 3)
    buffer.retire("c")
    buffer.record("d", 1)
    buffer.add("d", Response([1, 6, 7], [-1.0] * 3), 1.0, step=9)
    buffer.mark_scored(buffer.rows("a"), [0.5, 1.5])
    buffer.mark_used(int(buffer.rows("a")[0]), 9)
    checkpointer.save(tmp_path / "global_step_10", buffer, {})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    fast.save_pretrained(tmp_path / "global_step_10" / "actor" / "huggingface")
    return tmp_path


@pytest.fixture
def refill_root(tmp_path):
    """Step 6 of a run with zero-variance refill: one group of two, equal responses, prompts, a token of a tool's."""
    buffer = ExperienceBuffer(4)
    buffer.origin = Origin("rollout", "abc", 0.6)
    group = Provenance(buffer.new_group(), successes=2, size=4, advantage=0.5)
    for _ in range(2):
        response = Response([1, 2, 3, 4], [-0.5, 0.0, -0.5, -0.5], [True, False, True, True], prompt_ids=[5, 6])
        buffer.add("7", response, 1.0, 3, provenance=group, keep_prompt=True, keep_duplicates=True)
    buffer.origin = Origin("import", "", 1.0, "one")
    buffer.add("8", Response([1, 2], [-1.0, -1.0]), 0.0, 4)
    buffer.mark_scored([0], [0.5], [0.75], [0.01])
    buffer.mark_used([0, 1], 5)
    fingerprint = PRINT | {"policy": "refill"}
    ExperienceCheckpointer(fingerprint).save(tmp_path / "refill/global_step_6", buffer, {"rng": {}})
    return tmp_path / "refill"


@pytest.fixture
def inspect(capsys):
    def call(*args):
        code = main(["inspect", *map(str, args)])
        return code, capsys.readouterr()

    return call


@pytest.fixture
def answer(inspect):
    """The JSON object printed for a command line that succeeds."""

    def call(*args):
        code, printed = inspect(*args, "--json")
        assert code == 0, printed.err
        return json.loads(printed.out)

    return call


def test_summary(root, answer):
    report = answer(root / "global_step_10")
    expected = {"step": 10, "group_size": 4, "questions": 3, "eligible": 3, "cooling": 0, "retired": 1, "tokens": 15}
    assert {key: report[key] for key in expected} == expected
    assert report["trajectories"] == 4
    assert report["buckets"] == {"1": 2, "2": 0, "3": 1}
    assert report["age_steps"] == {"n": 4, "mean": 5.75, "min": 1, "p10": 2.5, "p50": 7, "p90": 8, "max": 8}
    assert report["entropy"]["n"] == 2
    assert report["entropy"]["mean"] == 1.0
    assert report["use_count"]["max"] == 1
    assert report["length"]["min"] == 3
    assert report["advantage"] == {"n": 0}
    assert report["fingerprint"] == PRINT
    assert report["checkpoint"]["dead_trajectories"] == 1  # of the retired question


@pytest.mark.parametrize("path", ["global_step_10/experience", ".", "global_step_10"])
def test_a_path_may_be_the_folder_the_step_or_the_root(root, answer, path):
    assert answer(root / path)["step"] == 10


def test_summary_as_tables(root, inspect):
    code, printed = inspect(root)
    assert code == 0
    for text in ("eligible questions", "1/4", "entropy, nats per token", "bytes on disk", "tiny", "exgrpo", "rollout"):
        assert text in printed.out


def counted(n: int) -> dict:
    """Of trajectories that no tool answered."""
    return {"tools": "", "trajectories": n}


def test_summary_of_refill(refill_root, answer, inspect):
    report = answer(refill_root)
    assert report["fingerprint"]["policy"] == "refill"
    assert (report["trajectories"], report["groups"], report["with_prompt"], report["eligible"]) == (3, 1, 2, 0)
    assert report["origins"] == [
        {"source": "rollout", "chat_template": "abc", "temperature": 0.6, "behaviour": "measured"} | counted(2),
        {"source": "import", "chat_template": "", "temperature": 1.0, "behaviour": "one"} | counted(1),
    ]
    assert (report["advantage"]["n"], report["advantage"]["mean"]) == (2, 0.5)
    assert (report["nll"]["mean"], report["drift"]["n"], report["reward"]["min"]) == (0.75, 1, 0)
    assert "import" in inspect(refill_root)[1].out


def test_every_option_works_for_refill(refill_root, root, answer, tmp_path):
    assert answer(refill_root, "--verify")["intact"]
    assert answer("--diff", root, refill_root)["trajectories"] == {"a": 4, "b": 3, "added": 3, "removed": 4}
    assert answer("--diff", refill_root, refill_root)["trajectories"] == {"a": 3, "b": 3, "added": 0, "removed": 0}
    assert len(answer(refill_root, "--plot", "--export", "jsonl", "--out", tmp_path)["written"]) == 2
    tokenizer = root / "global_step_10/actor/huggingface"
    data = dataset(tmp_path / "train.parquet", {"x7": "4", "x8": "4"}, question_ids=False)
    report = answer(refill_root, "--regrade", "--data", data, "--tokenizer", tokenizer)
    assert (report["graded"], report["not_in_data"], report["no_longer_pass"]) == (3, 0, [])


def test_question_of_refill_shows_where_its_trajectories_come_from(refill_root, answer, inspect):
    first, second = answer(refill_root, "--question", "7")["trajectories"]
    assert first["log_probs"] == [-0.5, 0.0, -0.5, -0.5]
    assert first["mask"] == [True, False, True, True]
    assert first["prompt_ids"] == second["prompt_ids"] == [5, 6]
    assert first["prompt_hash"] == f"{prompt_hash([5, 6]):016x}"
    known = {"group": 0, "group_successes": 2, "group_size": 4, "advantage": 0.5, "source": "rollout"}
    assert {key: first[key] for key in known} == known
    assert (first["entropy"], first["nll"], second["nll"]) == (0.5, 0.75, None)
    assert answer(refill_root, "--question", "8")["trajectories"][0]["group"] is None
    out = " ".join(inspect(refill_root, "--question", "7")[1].out.split())
    assert "question 7: no success count, 2 trajectories" in out
    for text in (
        "collected at step 3 (rollout, temperature 0.6)", "group 0 with 2 of 4 solved, advantage 0.5", "1 use",
        "entropy 0.500, nll 0.750, drift 0.010", "1 of the tokens not the model's own", "stored with a prompt of 2 tokens",
    ):  # fmt: skip
        assert text in out


def test_empty_experience(tmp_path, answer, inspect):
    ExperienceCheckpointer(PRINT).save(tmp_path / "global_step_1", ExperienceBuffer(4), {})
    assert answer(tmp_path)["age_steps"] == {"n": 0}
    assert inspect(tmp_path)[0] == 0
    assert answer(tmp_path, "--plot", "--out", tmp_path)["written"] == [str(tmp_path / "experience_step_1.png")]


def test_question_is_decoded_with_the_tokenizer_beside(root, answer):
    report = answer(root, "--question", "a")
    assert report["latest_count"] == 1
    assert [t["text"] for t in report["trajectories"]] == ["the answer is \\boxed{4}", "the answer is \\boxed{5}"]
    assert [t["entropy"] for t in report["trajectories"]] == [0.5, 1.5]
    assert report["trajectories"][1]["log_probs"] == [-0.25] * 4


def test_question_without_and_with_a_named_tokenizer(root, answer):
    report = answer(root / "global_step_5", "--question", "a")
    assert not report["decoded"]
    assert report["trajectories"][0]["token_ids"] == [1, 2, 3, 4]
    named = answer(root / "global_step_5", "--question", "a", "--tokenizer", root / "global_step_10/actor/huggingface")
    assert named["trajectories"][0]["text"] == "the answer is \\boxed{4}"


def test_model_output_cannot_command_the_terminal(root, inspect):
    code, printed = inspect(root, "--question", "d")
    assert code == 0
    assert "\x1b" not in printed.out
    assert "\\x1b[31mred [bold]" in printed.out
    assert printable("a\x9b\u202eb\tc\n") == "a\\x9b\\u202eb\tc\n"


def test_retired_question_is_said_to_be(root, answer):
    assert answer(root, "--question", "c")["retired"]


def test_verify(root, answer, inspect):
    assert answer(root, "--verify")["intact"]
    segment = root / "global_step_10/experience/segment-000001.safetensors"
    raw = bytearray(segment.read_bytes())
    raw[-1] ^= 1
    segment.write_bytes(raw)
    code, printed = inspect(root, "--verify", "--json")
    report = json.loads(printed.out)
    assert code == 1
    assert [p["file"] for p in report["problems"]] == [str(segment)]
    code, printed = inspect(root, "--verify")
    assert code == 1
    assert "SHA-256" in printed.out


def test_a_run_is_looked_at_where_a_start_resumes_from_and_what_is_newer_is_named(root, answer, inspect):
    """A disk that filled up in the save of step 10: its experience is whole, its weights are not."""
    (root / "latest_checkpointed_iteration.txt").write_text("5")
    (root / "global_step_10/actor/model_world_size_1_rank_0.pt").write_bytes(b"PK\x03\x04 torn")
    assert answer(root)["path"] == str(root / "global_step_5/experience")
    code, said = inspect(root, "--verify", "--json")
    assert code == 0
    assert json.loads(said.out)["path"] == str(root / "global_step_5/experience")
    assert "global_step_10 is newer than global_step_5" in said.err
    assert "incomplete" in said.err
    assert "model_world_size_1_rank_0.pt is cut short" in said.err


def test_without_a_usable_tracker_the_newest_is_shown(root, answer, inspect):
    (root / "latest_checkpointed_iteration.txt").write_text("")
    assert answer(root)["path"] == str(root / "global_step_10/experience")
    assert "is empty" in inspect(root)[1].err


def test_diff(root, answer, inspect):
    report = answer("--diff", root / "global_step_5", root / "global_step_10")
    assert report["trajectories"] == {"a": 4, "b": 4, "added": 1, "removed": 1}
    assert report["moved"] == [
        {"question": "b", "from": 2, "to": 3},
        {"question": "c", "from": 3, "to": None},
    ]
    assert (report["questions_added"], report["questions_removed"]) == (["d"], [])
    assert (report["retired"], report["unretired"]) == (["c"], [])
    assert "trajectories added" in inspect("--diff", root / "global_step_5", root / "global_step_10")[1].out


def dataset(path: Path, answers: dict[str, str], question_ids: bool = True) -> Path:
    """A parquet file of questions with these answers; without `question_ids` keyed by their index alone, 7, 8, ..."""
    rows = [
        {
            "data_source": "gsm8k",
            "prompt": [{"role": "user", "content": "2 + 2?"}],
            "reward_model": {"style": "rule", "ground_truth": answer},
            "extra_info": {"split": "train", "index": i} | ({"question_id": question} if question_ids else {}),
        }
        for i, (question, answer) in enumerate(answers.items(), 7)
    ]
    pd.DataFrame(rows).to_parquet(path)
    return path


def test_regrade_lists_what_no_longer_passes(root, answer, inspect, tmp_path):
    data = dataset(tmp_path / "train.parquet", {"a": "4", "b": "4"})
    report = answer(root, "--regrade", "--data", data)
    assert (report["graded"], report["not_in_data"], report["timeout_or_error"]) == (3, 1, 0)
    assert [(r["question"], r["stored"], r["now"], r["extracted"]) for r in report["no_longer_pass"]] == [
        ("a", 1.0, 0.0, "5")
    ]
    assert answer(root, "--regrade", "--data", data, "--question", "b")["no_longer_pass"] == []
    assert "3 graded, 1 no longer pass" in inspect(root, "--regrade", "--data", data)[1].out


def test_what_no_longer_passes_goes_out_into_a_new_state_and_the_old_one_stays(root, answer, tmp_path):
    data, out = dataset(tmp_path / "train.parquet", {"a": "4", "b": "4"}), tmp_path / "again" / "global_step_10"
    before = {path: path.read_bytes() for path in (root / "global_step_10").rglob("*") if path.is_file()}
    report = answer(root, "--regrade", "--data", data, "--apply", out)
    assert (report["left"], len(report["no_longer_pass"])) == (3, 1)
    assert {path: path.read_bytes() for path in before} == before
    assert answer(out, "--verify")["intact"]
    old, new = (Stored.open(path) for path in (root / "global_step_10", out))
    assert (new.fingerprint, new.extra) == (old.fingerprint, old.extra)
    assert answer("--diff", root / "global_step_10", out)["trajectories"] == {"a": 4, "b": 3, "added": 0, "removed": 1}
    (left,) = answer(out, "--question", "a")["trajectories"]  # by the tokenizer that came along
    assert (left["text"], left["row"]) == ("the answer is \\boxed{4}", 0)
    (gone,) = map(json.loads, (out / "taken_out.jsonl").read_text().splitlines())
    assert (gone["question"], gone["text"], gone["log_probs"]) == ("a", "the answer is \\boxed{5}", [-0.25] * 4)
    assert new.buffer().retired == ["c"]


def test_regrade_takes_the_reward_of_a_run(root, answer, tmp_path):
    reward = tmp_path / "mine.py"
    reward.write_text("def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    return 0.0\n")
    data = dataset(tmp_path / "train.parquet", {"a": "4", "b": "4"})
    run = f"reward.custom_reward_function.path={reward}"
    assert len(answer(root, "--regrade", "--data", data, "--run", run)["no_longer_pass"]) == 3


def test_apply_writes_nothing_over_what_is_there(root, inspect, tmp_path):
    data = dataset(tmp_path / "train.parquet", {"a": "4"})
    for extra in (["--apply", root / "global_step_10"], ["--apply", tmp_path / "new", "--question", "a"]):
        code, printed = inspect(root, "--regrade", "--data", data, *extra)
        assert (code, "a folder that is not there yet" in " ".join(printed.err.split())) == (1, True)
    assert not (tmp_path / "new").exists()


def test_a_trajectory_says_whose_log_probs_it_has(refill_root, inspect):
    assert "without log-probs (pi_past = 1)" in inspect(refill_root, "--question", "8")[1].out
    assert "pi_past" not in inspect(refill_root, "--question", "7")[1].out


def test_regrade_counts_what_the_grader_did_not_finish(root):
    buffer = ExperienceBuffer(4)
    buffer.add("a", Response([1], [-1.0]), 1.0, 0)
    row = {"data_source": "x", "reward_model": {"ground_truth": "4"}, "extra_info": {}}
    result = list(regrade(trajectories(buffer), {"a": row}, str, lambda *_, **__: {"score": 0.0, "timeout": 1.0}))
    assert result[0].trouble == "timeout"


def test_export_parquet_opens_in_pandas(root, answer, tmp_path):
    (written,) = answer(root, "--export", "parquet", "--out", tmp_path / "out")["written"]
    table = pd.read_parquet(written)
    assert written.endswith("experience_step_10.parquet")
    assert table["question"].tolist() == ["a", "a", "b", "d"]
    assert table["latest_count"].tolist() == [1, 1, 3, 1]
    assert table["token_ids"][3].tolist() == [1, 6, 7]
    assert table["log_probs"][1].tolist() == [-0.25] * 4
    assert table["text"][0] == "the answer is \\boxed{4}"
    np.testing.assert_array_equal(table["entropy"], [0.5, 1.5, np.nan, np.nan])
    assert table["group"].isna().all()
    assert set(table["source"]) == {"rollout"}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["experience_step_10.parquet"]


def test_export_of_refill_has_groups_prompts_and_masks(refill_root, answer, tmp_path):
    (written,) = answer(refill_root, "--export", "parquet", "--out", tmp_path)["written"]
    table = pd.read_parquet(written)
    assert table["question"].tolist() == ["7", "7", "8"]
    assert table["group"].fillna(-1).tolist() == [0, 0, -1]
    assert table["group_successes"].tolist() == [2, 2, 0]
    assert table["advantage"].tolist() == [0.5, 0.5, 0.0]
    assert table["temperature"].tolist() == [0.6, 0.6, 1.0]
    assert table["prompt_hash"].nunique() == 2
    assert [ids.tolist() for ids in table["prompt_ids"]] == [[5, 6], [5, 6], []]
    assert table["mask"][0].tolist() == [True, False, True, True]
    np.testing.assert_array_equal(table["drift"], np.float32([0.01, np.nan, np.nan]))


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_an_export_shows_how_far_it_is(root, inspect, tmp_path, monkeypatch, form):
    """To a person at a terminal: it took 34 s in silence. In a log, and beside --json's object, nothing of it stands."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, printed = inspect(root, "--export", form, "--out", tmp_path / "out")
    assert (code, "exporting" in printed.out, "100%" in printed.out) == (0, True, True)
    monkeypatch.delenv("FORCE_COLOR")
    for more in ((), ("--json",)):
        code, printed = inspect(root, "--export", form, "--out", tmp_path / "out", *more)
        assert (code, "exporting" in printed.out) == (0, False)


def test_an_export_shows_all_trajectories_or_those_of_its_question(root, inspect, tmp_path, monkeypatch):
    totals = []

    def counted(found, doing, total, **_):
        totals.append((doing, total, len(rows := list(found))))
        return rows

    monkeypatch.setattr("recipe.exgrpo.cli.inspect.track", counted)
    inspect(root, "--export", "jsonl", "--out", tmp_path)
    inspect(root, "--export", "jsonl", "--out", tmp_path, "--question", "a")
    assert totals == [("exporting", 4, 4), ("exporting", 2, 2)]


def test_export_jsonl_of_one_question(root, answer, tmp_path):
    (written,) = answer(root / "global_step_5", "--export", "jsonl", "--question", "b", "--out", tmp_path)["written"]
    (line,) = Path(written).read_text().splitlines()
    assert json.loads(line)["token_ids"] == [1, 2, 3, 4]
    assert "text" not in json.loads(line)


def test_plot_is_a_picture(root, answer, tmp_path):
    (written,) = answer(root, "--plot", "--out", tmp_path)["written"]
    raw = Path(written).read_bytes()
    assert raw.startswith(b"\x89PNG")
    assert len(raw) > 5000


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["nowhere"], "nowhere: there is no experience state here"),
        ([], "PATH is missing"),
        (["ROOT", "--question", "zzz"], "question 'zzz' is not in"),
        (["ROOT", "--regrade"], "--regrade needs --data"),
        (["ROOT/global_step_5", "--regrade", "--data", "x.parquet"], "needs --tokenizer"),
        (["ROOT", "--question", "a", "--tokenizer", "nowhere"], "--tokenizer nowhere is not a folder"),
    ],
)
def test_failures_are_one_sentence_and_exit_code_one(root, inspect, args, reason):
    code, printed = inspect(*(arg.replace("ROOT", str(root)) for arg in args))
    assert code == 1
    assert reason in " ".join(printed.err.split())
    assert printed.out == ""


def test_distribution_ignores_what_is_not_finite():
    assert distribution(np.array([np.nan, 2.0, np.inf, 4.0]))["mean"] == 3
    assert distribution(np.array([])) == {"n": 0}


def test_inspect_loads_no_heavy_package(root):
    code = (
        "import sys; from recipe.exgrpo.cli.main import main; code = main(['inspect', sys.argv[1], '--json']);"
        "assert not {'ray', 'verl', 'torch', 'transformers', 'vllm'} & set(sys.modules); sys.exit(code)"
    )
    place = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, root], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trajectories"] == 4


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "inspect" in capsys.readouterr().out
