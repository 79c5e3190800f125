"""data/prepare_eval.py: the nine benchmarks and GSM8K, shuffled options, the validation mix, refusals."""

import json
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data import prepare_eval
from data.catalog import benchmarks, shuffled_choice
from data.errors import exit_with_sentence
from data.validation import AUTHORS, SAMPLES_COLUMN
from verl_ext.rewards import compute_score

EVALUATION_FILES = Path(__file__).resolve().parents[3] / "shared" / "data" / "eval"
AUTHORS_ROWS = EVALUATION_FILES.parent / "exgrpo" / "valid.parquet"
# benchmark: (questions, repeats of each) of the authors' 2,259 rows, and what they call it
SIZES = {
    "olympiadbench": (675, 1),
    "math500": (500, 1),
    "amc23": (83, 4),
    "minerva": (272, 1),
    "aime24": (30, 8),
    "aime25": (30, 8),
}
THEIR_NAMES = {"olympiadbench": "olympiad_bench", "math500": "math", "amc23": "amc", "aime24": "aime"} | {
    name: name for name in ("minerva", "aime25")
}
MATHS = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench")
FILES = {
    "aime": [{"problem": f"AIME 24 question {i}?", "answer": f"{i:03d}"} for i in range(4)],
    "aime25": [{"problem": f"AIME 25 question {i}?", "answer": i} for i in range(4)],
    "amc": [{"problem": f"AMC question {i}?", "answer": float(i)} for i in range(4)],
    "math": [{"problem": f"MATH question {i}?", "answer": rf"\frac{{{i}}}{{7}}"} for i in range(6)],
    "minerva": [{"question": f"Minerva question {i}?", "answer": f"{i}.5e-{i + 9}"} for i in range(6)],
    "olympiad_bench": [{"question": f"Olympiad question {i}?", "final_answer": [f"${i}$"]} for i in range(6)],
    "gsm8k": [{"question": f"GSM8K question {i}?", "answer": f"because\n#### {i}"} for i in range(4)],
    "arc_c": [
        {
            "question": f"ARC question {i}?",
            "choices": {"text": [f"text {i}{j}" for j in range(4)], "label": ["1", "2", "3", "4"]},
            "answerKey": str(i % 4 + 1),
        }
        for i in range(8)
    ],
    "gpqa": [
        {"Question": f"GPQA question {i}?", "Correct Answer": f"right {i}\n"}
        | {f"Incorrect Answer {j}": f"wrong {i}{j}" for j in (1, 2, 3)}
        for i in range(8)
    ],
    "mmlu_pro": [
        {"question": f"MMLU question {i}?", "options": [f"option {j}" for j in range(10)], "answer": "ABCDEFGHIJ"[i]}
        for i in range(8)
    ],
}
RIGHT = {
    "arc_c": lambda i: f"text {i}{i % 4}",
    "gpqa_diamond": lambda i: f"right {i}",
    "mmlu_pro": lambda i: f"option {i}",
}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for name, rows in FILES.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def whole_source(tmp_path):
    """The six mathematics benchmarks with as many made-up questions as they have."""
    folder = tmp_path / "whole"
    folder.mkdir()
    stems = {"aime24": "aime", "amc23": "amc", "math500": "math", "olympiadbench": "olympiad_bench"}
    for name, (count, _) in SIZES.items():
        rows = [json.dumps({"problem": f"{name} question {i}?", "answer": "7"}) + "\n" for i in range(count)]
        (folder / f"{stems.get(name, name)}.jsonl").write_text("".join(rows))
    return folder


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Runs the script; returns its exit code and the output folder."""

    def run(names: str, *arguments: str, out: str = "out") -> tuple[int, Path]:
        path = tmp_path / out
        command = ["prepare_eval.py", "--benchmarks", names, "--template", "thought", "--out", str(path)]
        monkeypatch.setattr(sys, "argv", [*command, *map(str, arguments)])
        try:
            exit_with_sentence(prepare_eval.main)
        except SystemExit as ending:
            return ending.code, path
        return 0, path

    return run


def rows_of(path: Path, name: str) -> list[dict]:
    return pq.read_table(path / f"{name}.parquet").to_pylist()


def test_all_benchmarks(prepare, source):
    code, out = prepare(",".join(benchmarks(0)), "--source", source)
    assert code == 0
    assert sorted(p.stem for p in out.glob("*.parquet")) == sorted(benchmarks(0))
    for name in benchmarks(0):
        manifest = json.loads((out / f"{name}.manifest.json").read_text())
        rows = rows_of(out, name)
        samples = 32 if name in ("aime24", "aime25", "amc23") else 1
        assert manifest["n_samples"] == samples
        assert {row["extra_info"]["n_samples"] for row in rows} == {samples}
        assert {row["data_source"] for row in rows} == {name}
        assert manifest["gold_answers"]["counts"]["not equal to itself"] == 0
        assert [row["extra_info"]["index"] for row in rows] == list(range(len(rows)))


@pytest.mark.parametrize("name", MATHS)
def test_the_gold_answer_is_rewarded_and_another_is_not(name, prepare, source):
    _, out = prepare(name, "--source", source)
    first, second = rows_of(out, name)[1:3]
    gold, other = first["reward_model"]["ground_truth"], second["reward_model"]["ground_truth"]
    for answer, expected in ((gold, 1.0), (other, 0.0)):
        response = f"thinking</think>The answer is \\boxed{{{answer}}}."
        assert compute_score(name, response, gold, first["extra_info"])["score"] == expected
        assert compute_score(name, f"\\boxed{{{answer}}}", gold, first["extra_info"])["score"] == 0.0  # think format


@pytest.mark.parametrize("name", RIGHT)
def test_options_are_shuffled_and_the_letter_follows(name, prepare, source):
    _, out = prepare(name, "--source", source)
    letters = []
    for i, row in enumerate(rows_of(out, name)):
        letter = row["reward_model"]["ground_truth"]
        assert f"\n{letter}. {RIGHT[name](i)}\n" in row["prompt"][-1]["content"]
        assert compute_score(name, f"</think>\\boxed{{{letter}}}", letter, row["extra_info"])["score"] == 1.0
        letters.append(letter)
    assert len(set(letters)) > 1  # GPQA's right answer comes first in the source


def test_the_order_of_options_is_fixed_by_seed_and_question():
    options = [str(i) for i in range(10)]
    assert shuffled_choice("q", options, 3, 0, "") == shuffled_choice("q", options, 3, 0, "")
    assert len({shuffled_choice("q", options, 3, seed, "") for seed in range(5)}) > 1
    assert len({shuffled_choice(q, options, 3, 0, "")[1] for q in "abcdefgh"}) > 1


def test_same_input_same_bytes(prepare, source):
    _, a = prepare("gpqa_diamond,math500", "--source", source, "--validation", "mix", "--validation-size", "7", out="a")
    _, b = prepare("gpqa_diamond,math500", "--source", source, "--validation", "mix", "--validation-size", "7", out="b")
    for file in a.iterdir():
        assert file.read_bytes() == (b / file.name).read_bytes()


def test_validation_mix(prepare, source):
    code, out = prepare(",".join(MATHS), "--source", source, "--validation", "mix", "--validation-size", "20")
    rows = rows_of(out, "validation")
    manifest = json.loads((out / "validation.manifest.json").read_text())
    assert code == 0
    assert len(rows) == 20 == sum(manifest["questions"].values()) == sum(manifest["samples"].values())
    assert manifest["composition"] == "mix"
    assert len({row["extra_info"]["question_id"] for row in rows}) == 20
    assert {row["extra_info"]["n_samples"] for row in rows} == {1}
    assert SAMPLES_COLUMN not in rows[0]  # rollout.val_kwargs.n has its say
    _, out = prepare(",".join(MATHS), "--source", source, "--validation", "mix", "--validation-size", "30")
    assert len(rows_of(out, "validation")) == 30


@pytest.mark.parametrize(
    ("names", "arguments", "sentence"),
    [
        (MATHS, ["mix", "--validation-size", "31"], "--validation-size 31: the benchmarks have 30 questions"),
        (MATHS, ["mix", "--validation-size", "0"], "--validation-size 0: the benchmarks have 30 questions"),
        (MATHS, ["mix"], "--validation mix and --validation-size N go together"),
        (MATHS, ["authors", "--validation-size", "30"], "--validation mix and --validation-size N go together"),
        (MATHS[:3], ["authors"], "--validation authors needs olympiadbench, math500, minerva as well"),
        (MATHS, ["authors"], "olympiadbench: the source has 6 questions, the authors' validation set 675"),
    ],
)
def test_a_validation_set_that_cannot_be_made_is_one_sentence_and_code_2(
    names, arguments, sentence, prepare, source, capsys
):
    code, out = prepare(",".join(names), "--source", source, "--validation", *arguments)
    assert code == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_the_authors_validation_set(prepare, whole_source):
    """Sizes and repeats as in the authors' valid.parquet (method.md, "Validation during training")."""
    code, out = prepare(",".join(MATHS), "--source", whole_source, "--validation", "authors")
    assert code == 0
    rows = rows_of(out, "validation")
    questions = Counter(row["data_source"] for row in rows)
    samples = Counter()
    for row in rows:
        assert row[SAMPLES_COLUMN] == row["extra_info"]["n_samples"]
        samples[row["data_source"]] += row[SAMPLES_COLUMN]
    assert questions == {name: rows_and_repeats[0] for name, rows_and_repeats in SIZES.items()}
    assert samples == {name: rows * repeats for name, (rows, repeats) in SIZES.items()}
    assert samples.total() == 2259
    manifest = json.loads((out / "validation.manifest.json").read_text())
    assert (manifest["composition"], manifest["questions"], manifest["samples"]) == ("authors", questions, samples)


@pytest.mark.skipif(not AUTHORS_ROWS.is_file(), reason="the authors' valid.parquet is not here")
def test_the_authors_rows_and_ours_are_the_same_questions_golds_and_repeats():
    """Read from the files of ../shared/data/eval; not graded, which takes minutes."""
    theirs = Counter()
    for row in pq.read_table(AUTHORS_ROWS).to_pylist():
        theirs[row["data_source"], row["prompt"][-1]["content"], row["reward_model"]["ground_truth"]] += 1
    assert theirs.total() == 2259
    ours = Counter()
    for name, part in AUTHORS.items():
        benchmark = benchmarks(0)[name]
        source = prepare_eval.find_source(benchmark, EVALUATION_FILES)
        records, placeholders = prepare_eval.read_benchmark(benchmark, source)
        assert placeholders == 0
        assert (len(records), part.samples) == SIZES[name]
        for record in records:
            ours[THEIR_NAMES[name], record.question, record.answer] += part.samples
    # Ours are stripped: one question of OlympiadBench and five of AMC have line breaks or spaces around them there.
    assert Counter(name for name, _, _ in theirs - ours) == {"olympiad_bench": 1, "amc": 5}
    assert Counter({(n, q.strip(), a.strip()): count for (n, q, a), count in theirs.items()}) == ours


def test_a_gold_answer_that_cannot_be_graded_is_reported_and_kept(prepare, source, capsys):
    (source / "math.jsonl").write_text('{"problem": "p", "answer": "(((((((((1"}\n{"problem": "r", "answer": "3"}\n')
    code, out = prepare("math500", "--source", source)
    assert code == 0
    assert len(rows_of(out, "math500")) == 2
    assert "unverifiable: ['(((((((((1']" in capsys.readouterr().out


def test_placeholders_are_dropped_with_a_count(prepare, source, capsys):
    golds = ["3", "proof", "N/A", "5", "notfound", r"\text{None}", "TBD"]
    rows = [json.dumps({"problem": f"p{i}", "answer": gold}) + "\n" for i, gold in enumerate(golds)]
    (source / "math.jsonl").write_text("".join(rows))
    code, out = prepare("math500", "--source", source)
    assert code == 0
    kept = [(row["extra_info"]["index"], row["reward_model"]["ground_truth"]) for row in rows_of(out, "math500")]
    assert kept == [(0, "3"), (3, "5")]  # places in the source
    assert json.loads((out / "math500.manifest.json").read_text())["dropped"] == {"placeholder answer": 5}
    assert "dropped 5: placeholder answer" in capsys.readouterr().out
    (source / "math.jsonl").write_text("".join(rows[1:3]))
    assert prepare("math500", "--source", source)[0] == 2
    assert "math500: the source has only placeholders for gold answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "row", "sentence"),
    [
        ("aime23", None, "--benchmarks: 'aime23' is not one of aime24"),
        (" , ", None, "--benchmarks names none"),
        ("math500", {"problem": "p", "answer": ""}, "math.jsonl, line 1: the answer is empty"),
        ("math500", {"problem": "p"}, "math.jsonl, line 1: no key 'answer' or 'final_answer'"),
        (
            "mmlu_pro",
            {"question": "q", "options": ["a"], "answer": "C"},
            "the right answer is not one of the 1 options",
        ),
        ("gpqa_diamond", {"Question": "q"}, "gpqa.jsonl, line 1: no key 'Correct Answer'"),
        ("arc_c", {"question": "q", "answerKey": "A"}, "arc_c.jsonl, line 1: no key 'choices.label'"),
        (
            "math500",
            {"problem": "\ud800", "answer": "1"},
            "math.jsonl, line 1: key 'problem' holds \\ud800, half a character",
        ),
        (
            "math500",
            {"problem": "p", "answer": "\udc00"},
            "math.jsonl, line 1: key 'answer' holds \\udc00, half a character",
        ),
        (
            "mmlu_pro",
            {"question": "q", "options": ["a", "\ud800"], "answer": "A"},
            "mmlu_pro.jsonl, line 1: key 'options' holds \\ud800, half a character",
        ),
        (
            "arc_c",
            {"question": "q", "answerKey": "A", "choices": {"text": ["\udfff"], "label": ["A"]}},
            "arc_c.jsonl, line 1: key 'choices.text' holds \\udfff, half a character",
        ),
        (
            "gpqa_diamond",
            {"Question": "q", "Correct Answer": "\ud800"},
            "gpqa.jsonl, line 1: key 'Correct Answer' holds",
        ),
        (
            "mmlu_pro",
            {"question": "q", "options": None, "answer": "A"},
            "mmlu_pro.jsonl, line 1: key 'options' must hold a list, not NoneType",
        ),
        (
            "mmlu_pro",
            {"question": "q", "options": ["a", None], "answer": "A"},
            "mmlu_pro.jsonl, line 1: key 'options' must hold text or a number, not NoneType",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(names, row, sentence, prepare, source, capsys):
    if row is not None:
        stem = {"math500": "math", "gpqa_diamond": "gpqa"}.get(names, names)
        (source / f"{stem}.jsonl").write_text(json.dumps(row) + "\n")
    code, out = prepare(names, "--source", source)
    assert code == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_folder_or_file(prepare, source, capsys):
    assert prepare("math500", "--source", source / "nowhere")[0] == 2
    assert "there is no such folder" in capsys.readouterr().err
    (source / "math.jsonl").unlink()
    assert prepare("math500", "--source", source)[0] == 2
    assert "no file for math500 (one of math500, math with .jsonl" in capsys.readouterr().err
