"""The toy task: determinism, an independent oracle for its answers, faults of demonstrations, grading, parquet rows."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data import toy_task
from data.make_toy import main_data, make_splits, parse_args
from data.toy_task import Noise, Question, make_questions, render_question, render_solution, solve

REPO = Path(__file__).resolve().parents[2]


def oracle(question: Question) -> int:
    """The answer by exact integer arithmetic, reduced once at the end."""
    value = question.start
    for operation, operand in question.steps:
        value = {"+": value + operand, "-": value - operand, "*": value * operand}[operation]
    return value % question.modulus


@pytest.fixture(scope="module")
def questions():
    return make_questions(300, np.random.default_rng(3))


def test_questions_follow_the_generator(questions):
    assert questions == make_questions(300, np.random.default_rng(3))
    assert questions != make_questions(300, np.random.default_rng(4))


def test_questions_are_distinct_and_vary_in_length(questions):
    assert len(set(questions)) == 300
    lengths = np.bincount([len(q.steps) for q in questions])
    assert np.flatnonzero(lengths).tolist() == [2, 3, 4, 5, 6]
    assert lengths[2:].min() > 30


def test_excluded_questions_are_not_drawn():
    first = make_questions(60, np.random.default_rng(0), min_steps=1, max_steps=1)
    again = make_questions(60, np.random.default_rng(0), min_steps=1, max_steps=1, exclude=frozenset(first))
    assert not set(first) & set(again)


def test_more_questions_than_exist_raises():
    with pytest.raises(ValueError, match="asked for 500 distinct questions"):
        make_questions(500, np.random.default_rng(0), min_steps=1, max_steps=1, modulus=10)


def test_bad_sizes_raise():
    with pytest.raises(ValueError, match="min_steps"):
        make_questions(1, np.random.default_rng(0), min_steps=3, max_steps=2)
    with pytest.raises(ValueError, match="modulus"):
        make_questions(1, np.random.default_rng(0), modulus=5)
    with pytest.raises(ValueError, match=r"Noise\.hard"):
        Noise(hard=1.5)


def test_answers_match_the_oracle(questions):
    assert [solve(q) for q in questions] == [oracle(q) for q in questions]


def test_answers_are_spread_so_that_guessing_does_not_pay():
    answers = [solve(q) for q in make_questions(3000, np.random.default_rng(5))]
    assert np.bincount(answers, minlength=100).max() / 3000 < 0.03


def test_question_text_round_trips(questions):
    assert [toy_task.parse_question(render_question(q)) for q in questions] == questions
    with pytest.raises(ValueError, match="not a toy question"):
        toy_task.parse_question("Start 3: /2 (mod 100)")


def test_clean_solutions_are_right_line_by_line(questions):
    for question in questions:
        text = render_solution(question)
        for line, (operation, operand) in zip(text.split("\n"), question.steps, strict=False):
            left, result = line.split("=")
            value = int(left.removesuffix(f"{operation}{operand}"))
            assert oracle(Question(value, ((operation, operand),))) == int(result)
        assert toy_task.grade(text, f"{oracle(question):02d}")


@pytest.mark.parametrize(
    ("value", "operation", "operand", "hard"),
    [(45, "+", 4, False), (45, "+", 5, True), (99, "+", 1, True), (45, "-", 5, False), (45, "-", 6, True),
     (0, "-", 1, True), (1, "*", 2, True)],
)  # fmt: skip
def test_hard_steps(value, operation, operand, hard):
    assert toy_task.is_hard(value, operation, operand) is hard


def test_noise_rates_are_those_asked_for():
    """First lines only: there neither an earlier slip nor an early stop can interfere."""
    rng = np.random.default_rng(0)
    slips = {True: [], False: []}
    for question in make_questions(4000, rng):
        line = render_solution(question, Noise(easy=0.1, hard=0.4), rng).split("\n")[0]
        hard = toy_task.is_hard(question.start, *question.steps[0])
        slips[hard].append(line.split("=")[1] != render_solution(question).split("\n")[0].split("=")[1])
    assert np.mean(slips[False]) == pytest.approx(0.1, abs=0.03)
    assert np.mean(slips[True]) == pytest.approx(0.4, abs=0.04)


def test_given_up_chains_box_the_value_so_far(questions):
    text = render_solution(questions[0], Noise(stop=1.0), np.random.default_rng(0))
    first_step = Question(questions[0].start, questions[0].steps[:1])
    assert text == render_solution(first_step)


def test_noise_needs_a_generator(questions):
    with pytest.raises(ValueError, match="needs rng"):
        render_solution(questions[0], Noise(hard=0.5))


@pytest.mark.parametrize(
    ("text", "content"),
    [(r"1\boxed{5}", "5"), (r"\boxed{5} or \boxed{ 7 }", "7"), (r"\boxed{", None), ("5", None), ("", None),
     (r"\boxed{\boxed{3}}", "3"), (r"\boxed{05}", "05"), (r"\boxed{" * 50_000, None)],
)  # fmt: skip
def test_extract(text, content):
    assert toy_task.extract(text) == content
    assert toy_task.grade(text, "5") == (content == "5")


def test_splits_are_disjoint_and_reproducible():
    train, heldout = make_splits()
    assert (len(train), len(heldout)) == (512, 128)
    assert not set(train) & set(heldout)
    assert (train, heldout) == make_splits()


def test_parquet_rows_have_verls_schema(tmp_path):
    main_data(parse_args(["data", "--out", str(tmp_path), "--train", "20", "--heldout", "5"]))
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    assert len(rows) == 20
    for i, row in enumerate(rows):
        assert set(row) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
        (message,) = row["prompt"]
        question = toy_task.parse_question(message["content"])
        assert message["role"] == "user"
        assert row["reward_model"] == {"style": "rule", "ground_truth": f"{oracle(question):02d}"}
        assert row["extra_info"] == {
            "split": "train", "index": i, "question_id": toy_task.question_id(message["content"])
        }  # fmt: skip
    ids = [row["extra_info"]["question_id"] for row in rows]
    ids += [row["extra_info"]["question_id"] for row in pq.read_table(tmp_path / "heldout.parquet").to_pylist()]
    assert len(set(ids)) == 25


def test_script_writes_the_same_bytes_every_time(tmp_path):
    """Two processes with different hash seeds, so that no set order can leak into the files."""
    digests = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        command = [sys.executable, REPO / "data/make_toy.py", "data", "--out", out, "--train", "40", "--heldout", "8"]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": seed}, cwd=tmp_path, capture_output=True)
        assert sorted(p.name for p in out.iterdir()) == ["heldout.parquet", "traces.jsonl", "train.parquet"]
        digests.append([hashlib.sha256((out / f"{s}.parquet").read_bytes()).hexdigest() for s in ("train", "heldout")])
    assert digests[0] == digests[1]


def test_script_refuses_an_empty_split(tmp_path):
    command = [sys.executable, REPO / "data/make_toy.py", "data", "--out", tmp_path / "out", "--train", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--train: must be at least 1, got 0" in done.stderr
    assert not (tmp_path / "out").exists()
