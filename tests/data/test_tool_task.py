"""The embedded tool task: its arithmetic, its demonstrations, its rows, and the calculator on untrusted text."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from data import make_tool_task, tool_task
from data.make_tool_task import CALL, CALL_END, NUMBERS, encode_prompt, encode_turn, make_tokenizer, parse_args, row_of
from data.tool_task import MAX_CALLS, Turn, calculate, replies, solve_in_turns, tool_questions
from data.toy_task import Noise, answer, grade, parse_question, render_question, solve
from recipe.exgrpo.presets.compose import ROOT
from verl_ext.rewards import compute_score

QUESTIONS = tool_questions(300, np.random.default_rng(0))


def test_questions_are_distinct_and_read_back():
    assert len(set(QUESTIONS)) == 300
    assert {len(question.steps) for question in QUESTIONS} == {1, 2, 3}
    assert all(parse_question(render_question(question)) == question for question in QUESTIONS)


@pytest.mark.parametrize(("expression", "result"), [("47*62", "14"), ("05-10", "95"), ("9+9", "18"), ("99+01", "00")])
def test_the_calculator_does_one_operation(expression, result):
    assert calculate(expression) == result


@pytest.mark.parametrize(
    "text", ["", "47*62+1", "47**2", "123+1", " 1+1", "1+1\n", "__import__('os')", "٣+1", "9" * 10**6]
)
def test_anything_else_is_an_error(text):
    assert calculate(text) == "error"


def test_clean_demonstrations_call_once_a_step_and_are_right():
    rng = np.random.default_rng(0)
    for question in QUESTIONS[:50]:
        turns = solve_in_turns(question, Noise(), rng)
        assert len(turns) == len(question.steps) + 1 <= MAX_CALLS
        assert int(replies(turns)[-2]) == solve(question)
        assert grade(turns[-1].text, answer(question))


@pytest.mark.parametrize("noise", [Noise(easy=1.0), Noise(hard=1.0), Noise(stop=1.0)])
def test_each_fault_costs_answers(noise):
    rng = np.random.default_rng(0)
    solved = [grade(solve_in_turns(q, noise, rng)[-1].text, answer(q)) for q in QUESTIONS]
    assert 0.05 < np.mean(solved) < 0.75


def test_a_guess_is_a_line_of_the_models_own():
    question = parse_question("Start 47: *62 +91 (mod 100)")
    first, last = solve_in_turns(question, Noise(hard=1.0), np.random.default_rng(1))
    guessed = first.text.removeprefix("47*62=").rstrip("\n")
    assert (first.call, last.call) == (f"{guessed}+91", None)
    assert last.text == f"\\boxed{{{calculate(first.call)}}}"


def test_a_call_is_short_and_in_the_form_that_hermes_reads():
    tokenizer = make_tokenizer()
    ids = encode_turn(tokenizer, Turn("", "47*62"))
    assert [tokenizer.decode([i]) for i in ids] == [CALL, "47", "*", "62", CALL_END, "<|im_end|>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"{CALL}47*62{CALL_END}"  # the reward sees it
    assert all(len(tokenizer(number).input_ids) == 1 for number in NUMBERS)


def test_lengths_fit_the_limits():
    tokenizer, rng = make_tokenizer(), np.random.default_rng(0)
    for question in QUESTIONS:
        prompt = len(encode_prompt(tokenizer, question))
        assert prompt <= tool_task.MAX_PROMPT_TOKENS
        turns = solve_in_turns(question, Noise(easy=0.3, hard=0.3), rng)
        whole = make_tool_task.demonstration(tokenizer, question, turns)
        assert len(whole.ids) - prompt <= tool_task.MAX_RESPONSE_TOKENS


def test_rows_are_graded_as_written():
    row = row_of(QUESTIONS[0], "train", 0)
    gold = row["reward_model"]["ground_truth"]
    assert compute_score(row["data_source"], f"\\boxed{{{gold}}}", gold)["score"] == 1
    assert compute_score(row["data_source"], f"\\boxed{{{int(gold) + 100}}}", gold)["score"] == 0


def test_the_script_writes_disjoint_splits(tmp_path):
    args = parse_args(["data", "--out", str(tmp_path), "--train", "20", "--heldout", "5"])
    make_tool_task.main_data(args)
    ids = [
        row["extra_info"]["question_id"]
        for split in ("train", "heldout")
        for row in pq.read_table(tmp_path / f"{split}.parquet").to_pylist()
    ]
    assert len(set(ids)) == len(ids) == 25


def test_the_launch_script_has_the_tasks_lengths():
    text = (ROOT / "scripts" / "tool_task.sh").read_text()
    longest = tool_task.MAX_PROMPT_TOKENS + tool_task.MAX_RESPONSE_TOKENS
    for setting in (
        f"data.max_prompt_length={tool_task.MAX_PROMPT_TOKENS} data.max_response_length={tool_task.MAX_RESPONSE_TOKENS}",
        f"rollout.max_model_len={longest}",
        f"multi_turn.max_assistant_turns={MAX_CALLS}",
    ):
        assert setting in text
