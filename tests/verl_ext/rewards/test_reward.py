"""Rules, extraction and the shape of the score; hostile input is in test_reward_hostile.py."""

import itertools

import pytest

from verl_ext import rewards
from verl_ext.rewards import Grader, compute_score, is_placeholder, rules
from verl_ext.rewards.grade import Grade, final_answer, last_boxed, shorten, solution_text
from verl_ext.rewards.metrics import reward_metrics

KEYS = {"score", "acc", "format_ok", "truncated", "extracted", "timeout", "error", "precheck"}


def boxed(answer: str) -> str:
    return "so the answer is \\boxed{" + answer + "}."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{ [0, \infty) }", r"[0, \infty)"),
        (r"\boxed{1} then \boxed{2", None),
        (r"\boxed 5", "5"),
        (r"so $\boxed 42$.", "42"),
        (r"so \boxed4.", "4"),
        (r"\boxed\frac{1}{2}", r"\frac{1}{2}"),
        (r"\boxedness", None),
        (r"\boxed $5", None),
        (r"ends with \boxed", None),
        ("no box", None),
        (r"\boxed{}", ""),
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{(2,2)} and \boxed{(6,2)}", "(2,2), (6,2)"),
        (r"\boxed{1},\boxed{2},\boxed{3}", "1, 2, 3"),
        (r"$\boxed{1}$, $\boxed{2}$ and $\boxed{3}$", "1, 2, 3"),
        (r"\boxed{1} \quad \boxed{2}", "1, 2"),
        (r"\boxed{1} \text{ and } \boxed{2}", "1, 2"),
        (r"\[\boxed{1},\qquad \boxed{2}\]", "1, 2"),
        (r"\boxed{x=1} or \boxed{x=2}", "x=1, x=2"),
        (r"\boxed{7} is wrong; \boxed{1} and \boxed{2}", "1, 2"),
        (r"\boxed{5}. So the answer is \boxed{5}", "5"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{5} \boxed{6}", "6"),
        (r"\boxed{5} and then \boxed{6}", "6"),
        (r"\boxed{5}, but \boxed{6}", "6"),
        (r"\boxed{5} and " + " " * 60 + r"\boxed{6}", "6"),
        (r"\boxed{5} and \boxed{6", None),
        (r"\boxed{\boxed{5}, \boxed{6}}", "5, 6"),
        ("no box", None),
    ],
)
def test_final_answer_joins_the_boxes_of_one_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "gold", "score"),
    [
        (r"\boxed{(2,2)} and \boxed{(6,2)}", "(2,2),(6,2)", 1.0),
        (r"\boxed{1},\boxed{2},\boxed{3}", "1,2,3", 1.0),
        (r"\boxed{1} or \boxed{2}", "2", 0.0),
        (r"\boxed{1}, \boxed{2}", "2", 0.0),
        (r"\boxed{-2} and \boxed{-2}", "-2,-2", 1.0),
        (r"\boxed 42", "42", 1.0),
        (r"\boxed{x=1} and \boxed{y=2}", "(1,2)", 1.0),
    ],
)
def test_several_boxes_are_graded_as_one_list(text, gold, score):
    assert compute_score("math500", text, gold)["score"] == score


@pytest.mark.parametrize(
    ("response", "think_format", "solution"),
    [
        ("a</think>b", True, "b"),
        ("a</think>b</think>c", True, "c"),
        ("a b", True, None),
        ("", True, None),
        ("a</think>", True, ""),
        ("a</think>b", False, "a</think>b"),
    ],
)
def test_solution_text(response, think_format, solution):
    assert solution_text(response, think_format) == solution


@pytest.mark.parametrize(
    ("response", "solution"),
    [
        ("a</think>b", "b"),
        ("a</think>b</think>c", "b"),
        ("a</think>b</think>c</think>d", "b"),
        ("</think></think>c", ""),
        ("a</think>", ""),
        ("a b", None),
        ("a</thinkb</think >c", None),
    ],
)
def test_solution_text_of_the_released_run(response, solution):
    assert solution_text(response, True, "first") == solution
    assert solution_text(response, False, "first") == response


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("42", "42"),
        ("42.0", "42"),
        (r"\frac{84}{2}", "42"),
        ("1,234", "1234"),
        ("204", "204.0"),
        ("0.333333", r"\frac{1}{3}"),
        (r"\dfrac{3}{4}", "0.75"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
        (r"\{2, 1\}", r"1, 2"),
        (r"x = 5", "5"),
        ("5", "x=5"),
        (r"\frac{10}{2} = 5", "5"),
        (r"18\text{ dollars}", "18"),
        (r"\$18", "18"),
        ("$18$", "18"),
        ("18.", "18"),
        (r"-\frac{1}{3}", "-1./3"),
        (r"$(-\infty, 0) \cup \{1\}$", r"$(-\infty, 0) \cup\{1\}$."),
        ("4.5e33", r"4.5 \times 10^{33}"),
        ("1.60e-19", "1.6e-19"),
        (r"4.5e33 \text{ ergs}", "4.5e33"),
        ("0.001", "1e-3"),
        ("-1 + 2e", "2e-1"),
        (r"\(\frac{1}{2}\)", r"\frac{1}{2}"),
        (r"50\%", "50%"),
        (r"\text{Evelyn}", r"\mathrm{Evelyn}"),
        ("(B)", r"\text{B}"),
        ("1 = x^2 + y^2", "x^2 + y^2 = 1"),
        ("p - q", "-q + p"),
    ],
)
def test_equivalent_answers_are_correct(answer, gold):
    score = compute_score("math500", boxed(answer), gold)
    assert (score["score"], score["acc"], score["extracted"]) == (1.0, 1.0, answer)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("41", "42"), (r"\frac{1}{2}", "2"), ("x + 1", "x + 2"), ("(1, 2)", "(2, 1)"), ("y = 5", "x = 5"), ("-5", "5")],
)
def test_other_answers_are_wrong_without_an_error(answer, gold):
    score = compute_score("math500", boxed(answer), gold)
    assert (score["score"], score["timeout"], score["error"], score["precheck"]) == (0.0, 0.0, 0.0, 0.0)


def test_a_text_without_a_box_is_graded_by_its_last_answer():
    assert compute_score("gsm8k", "First 7, then 12. The answer is 42.", "42")["score"] == 1.0
    assert compute_score("gsm8k", "First 42, then 7 remain.", "42")["score"] == 0.0
    assert compute_score("gsm8k", "1 " * 3000 + "42", "42")["extracted"] == "42"


def test_a_number_is_not_cut_in_two_by_the_text_limit():
    text = "12 " + "so" * (rules.TEXT_LIMIT // 2 - 1)
    assert text[-rules.TEXT_LIMIT :].startswith("2 ")
    assert compute_score("gsm8k", text, "2")["score"] == 0.0


def test_think_format():
    right = "\\boxed{1} hm</think>The answer is \\boxed{42}."
    assert compute_score("gsm8k", right, "42", think_format=True)["score"] == 1.0
    missing = compute_score("gsm8k", "\\boxed{42}", "42", think_format=True)
    assert (missing["score"], missing["format_ok"], missing["extracted"]) == (0.0, 0.0, "")
    assert compute_score("gsm8k", "\\boxed{42}</think>I do not know", "42", think_format=True)["score"] == 0.0
    assert compute_score("gsm8k", "\\boxed{42}", "42", think_format=False)["score"] == 1.0


def test_think_format_follows_the_sample_unless_it_is_set():
    for setting, sample, expected in itertools.product((None, True, False), (None, True, False), (0.0,)):
        extra_info = {} if sample is None else {"think_format": sample}
        on = bool(sample) if setting is None else setting
        score = compute_score("toy_modular", "\\boxed{4}", "4", extra_info, think_format=setting)
        assert score["score"] == (expected if on else 1.0)


def test_every_score_has_the_same_keys_and_types():
    texts = ["\\boxed{42}", "", "no", "\\boxed{", "\\boxed{" + "9" * 500 + "}", "\\boxed{x^" + "{x^" * 4 + "}}}}}"]
    for text, source in itertools.product(texts, ("gsm8k", "toy_modular", "arc_c")):
        score = compute_score(source, text, "42", {"index": 0}, reward_router_address=None)
        assert set(score) == KEYS
        assert all(isinstance(value, float) for key, value in score.items() if key != "extracted")
        assert isinstance(score["extracted"], str)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{(B)}}", "B"),
        (r"\boxed{B. Paris}", "B"),
        (r"\boxed{\textbf{B}}", "B"),
        ("I think the answer is (B) because", "B"),
        ("**Answer:** B", "B"),
        ("Answer: **B**", "B"),
        ("the answer is A. No: the answer is B.", "B"),
        (r"\boxed{b}", "B"),
        (r"\boxed{Option B}", "B"),
        (r"\boxed{\text{Option (B)}}", "B"),
        (r"\boxed{(b)}", "B"),
        ("The correct answer is option B.", "B"),
        ("The correct option is (B).", "B"),
        ("The right choice is: B", "B"),
        ("Answer: $B$", "B"),
        (r"Answer: $\text{B}$", "B"),
        ("answer: b", "B"),
        (r"Answer: \boxed{B}", "B"),
        ("**B**", "B"),
        ("It follows from the text.\n\n**(B)**\n", "B"),
        (r"we get \boxed{x=5}. **Answer: B**", "B"),
        (r"\boxed{\frac{1}{2}}, so the answer is B.", "B"),
        (r"Answer: B, as \boxed{12}", "B"),
        (r"\boxed{A}. Wait, the answer is B.", "B"),
        (r"Answer: A ... \boxed{B}", "B"),
        ("Option A is wrong.\nAnswer: B", "B"),
        ("Final Answer: The final answer is B. I hope it is correct.", "B"),
        (r"\boxed{A, B}", ""),
        (r"\boxed{A or B}", ""),
        (r"\boxed{A} and \boxed{B}", ""),
        (r"the answer is B: \boxed{A or B}", ""),
        (r"\boxed{ABCD}", ""),
        (r"\boxed{Paris}", ""),
        (r"\boxed{B", ""),
        (r"the answer is B, that is \boxed{B", ""),
        ("the answer is A or B", ""),
        ("the answer is (A), (B)", ""),
        ("Answer: $A$ and $B$", ""),
        ("the answer is a good one", ""),
        ("the answer is a", "A"),
        ("Answer: I think it is B", ""),
        ("So B seems right", ""),
        ("A B C D", ""),
        ("", ""),
    ],
)
def test_choice_letters(text, letter):
    score = compute_score("mmlu_pro", text, "B")
    assert (score["extracted"], score["score"]) == (letter, float(letter == "B"))


@pytest.mark.parametrize("gold", ["proof", "notfound", "None", "N/A", "TBD", "nan", "NaN", "?", r"\text{proof}"])
def test_a_placeholder_gold_answer_is_never_paid(gold):
    for source in ("math500", "toy_modular"):
        score = compute_score(source, boxed(gold), gold)
        assert (score["score"], score["error"]) == (0.0, 1.0)


@pytest.mark.parametrize("gold", ["", " ", None, float("nan")])
@pytest.mark.parametrize("source", ["math500", "toy_modular", "mmlu_pro"])
def test_a_missing_gold_answer_is_never_paid_and_ends_no_run(source, gold):
    for text in ("", "\\boxed{}", boxed(str(gold)), "None", "nan", "the answer is ."):
        assert compute_score(source, text, gold)["score"] == 0.0


@pytest.mark.parametrize(
    ("gold", "missing"),
    [
        *[
            (gold, True)
            for gold in ("proof", "Proof.", "not found", "none", "n/a", "NA", "tbd", "todo", "null", "", " ", "?", "-")
        ],
        *[
            (gold, True)
            for gold in (None, float("nan"), "NaN", r"\text{None}", "**proof**", "see solution", "unknown", "...")
        ],
        *[
            (gold, False)
            for gold in ("0", "Na", "no", "n", "proofreading", "no solution", "undefined", "DNE", r"\infty", "∅")
        ],
        *[(gold, False) for gold in (r"\emptyset", "None of the above", 0, 5.0, "x", "-1", r"\pi", "是")],
    ],
)
def test_placeholders(gold, missing):
    assert is_placeholder(gold) is missing


def test_the_gold_answer_itself_is_right_without_a_parser(monkeypatch):
    monkeypatch.setattr(Grader, "run", lambda *args: pytest.fail("a worker was asked"))
    for gold in (r"\frac{x^2+1}{\sqrt{y}}", "np.arcsin(10/13)", "(" * 9 + "x" + ")" * 9, "3,5,5", r"\text{Evelyn}"):
        assert compute_score("math500", boxed(f" {gold} "), gold)["score"] == 1.0


def test_plain_numbers_are_compared_without_a_worker(monkeypatch):
    monkeypatch.setattr(Grader, "run", lambda *args: pytest.fail("a worker was asked"))
    assert compute_score("gsm8k", boxed("1,234"), "1234")["score"] == 1.0
    assert compute_score("gsm8k", boxed(r"\frac{1}{2}"), "0.5")["score"] == 1.0
    assert compute_score("gsm8k", boxed("1235"), "1234")["score"] == 0.0


def test_a_truncated_response_counts_only_with_its_box():
    text = "First 7, then 12 and 42"
    assert compute_score("gsm8k", text, "42")["score"] == 1.0
    assert compute_score("gsm8k", text, "42", {"truncated": False})["score"] == 1.0
    cut = compute_score("gsm8k", text, "42", {"truncated": True})
    assert (cut["score"], cut["extracted"], cut["error"], cut["truncated"]) == (0.0, "", 0.0, 1.0)
    assert compute_score("gsm8k", boxed("42") + " and then", "42", {"truncated": True})["score"] == 1.0
    assert compute_score("mmlu_pro", "the answer is B", "B", {"truncated": True})["score"] == 0.0
    assert compute_score("mmlu_pro", r"\boxed{B} the", "B", {"truncated": True})["score"] == 1.0


@pytest.mark.parametrize(
    ("source", "text", "gold", "cut"),
    [
        ("math500", "so $x = 42$", "42", 0.0),
        ("math500", "The answer is 42", "42", 0.0),
        ("math500", "**Answer:** 42", "42", 0.0),
        ("math500", "half of it is \\frac{1}{2}", "1/2", 0.0),
        ("math500", "\\boxed{42} and so on, 43", "42", 1.0),
        ("math500", "\\boxed 42", "42", 1.0),
        ("math500", "\\boxed{42", "42", 0.0),
        ("mmlu_pro", "Answer: B", "B", 0.0),
        ("mmlu_pro", "\n**B**", "B", 0.0),
        ("mmlu_pro", "\\boxed{B}", "B", 1.0),
    ],
)
def test_a_truncated_response_is_paid_for_a_box_only(source, text, gold, cut):
    assert compute_score(source, text, gold, {"truncated": True})["score"] == cut


def test_exact_boxed():
    assert compute_score("toy_modular", boxed("17"), "17")["score"] == 1.0
    assert compute_score("toy_modular", boxed("17.0"), "17")["score"] == 0.0
    assert compute_score("toy_modular", "17", "17")["score"] == 0.0


def test_a_registered_rule_is_used_for_its_prefix(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    rules.register_rule("my_data", lambda text, gold, grader, truncated: Grade(0.25, "short"))
    rules.register_rule("my_data_long", lambda text, gold, grader, truncated: Grade(0.75, "long"))
    assert compute_score("my_data/a", "x", "y")["score"] == 0.25
    assert compute_score("my_data_long_b", "x", "y")["extracted"] == "long"
    assert rules.find_rule("unknown") is rules.math_rule
    for source, rule in (("", rules.math_rule), ("x", None), ("x", lambda text, gold: 1.0)):
        with pytest.raises(ValueError, match="register_rule"):
            rules.register_rule(source, rule)


def test_a_rule_is_told_about_truncation(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    rules.register_rule("my_data", lambda text, gold, grader, truncated=False: Grade(0.5 if truncated else 1.0))
    assert compute_score("my_data", "x", "y", {"truncated": True})["score"] == 0.5
    assert compute_score("my_data", "x", "y", {})["score"] == 1.0


def test_rules_module_is_imported_where_the_grading_happens(tmp_path, monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    (tmp_path / "my_rules_for_test.py").write_text(
        "from verl_ext.rewards import Grade, register_rule\n"
        "register_rule('from_module', lambda text, gold, grader, truncated: Grade(0.5))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert compute_score("from_module", "x", "y", rules_module="my_rules_for_test")["score"] == 0.5


@pytest.mark.parametrize(
    ("option", "value"),
    [("workers", 0), ("deadline_s", 0), ("memory_mb", 1), ("think_format", "maybe"), ("think_end", "second")],
)
def test_options_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=f"reward_kwargs.{option}"):
        compute_score("gsm8k", "x", "y", **{option: value})


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="worker_count"):
        compute_score("gsm8k", "x", "y", worker_count=2)


def test_an_unparseable_gold_answer_is_an_error_and_never_correct():
    for gold in ("", "  ", "$$", r"\text{}", None, float("nan")):
        score = compute_score("math500", boxed("42"), gold)
        assert (score["score"], score["error"]) == (0.0, 1.0)


def test_one_pool_per_process():
    assert rewards.shared_grader(1, 5.0, 1024) is rewards.shared_grader(1, 5.0, 1024)


def test_shorten_keeps_what_every_encoder_accepts():
    assert shorten("\ud800" + "a" * 500).encode("utf-8") == b"?" + b"a" * 199


def test_reward_metrics_are_means_over_the_rows_that_have_the_field():
    infos = [compute_score("toy_modular", text, "1") for text in ("\\boxed{1}", "\\boxed{2}", "")]
    metrics = reward_metrics([*infos, {}, {"timeout": 1.0}])
    assert metrics["reward/acc/mean"] == pytest.approx(1 / 3)
    assert metrics["reward/timeout/mean"] == pytest.approx(1 / 4)
    assert metrics["reward/format_ok/mean"] == 1.0
    assert metrics["reward/truncated/mean"] == 0.0
    cut = [compute_score("math500", "42", "42", {"truncated": i == 0}) for i in range(4)]
    assert reward_metrics(cut)["reward/truncated/mean"] == pytest.approx(1 / 4)
    assert "reward/extracted/mean" not in metrics
    assert reward_metrics([{}]) == {}
