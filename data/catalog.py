"""What is known about each training set and benchmark: where it is, which columns hold what, how it is sampled."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data.errors import DataError
from data.prompts import multiple_choice
from data.records import text_field, text_fields
from verl_ext.rewards.grade import last_boxed

DAPO_BEFORE = "Solve the following math problem step by step."
DAPO_AFTER = "Remember to put your answer on its own line after"


@dataclass(frozen=True)
class QuestionSet:
    """Where the questions of a data set come from.

    Attributes:
        data_source: name in the parquet; the reward picks its rule by it.
        hub_id, config, split: on the Hugging Face hub.
        read: (row, where it stands) -> (question, gold answer); "" for a missing one.
        drop: row -> why it is left out, or None.
        local_names: stems under which `prepare_eval.py --source DIR` looks for a file.
        n_samples: samples per question in evaluation.
        trace: dotted key of a written solution (`prepare_train.py --traces`); None where the data set has none.
    """

    data_source: str
    hub_id: str
    read: Callable[[Mapping[str, Any], str], tuple[str, str]]
    config: str | None = None
    split: str = "train"
    drop: Callable[[Mapping[str, Any]], str | None] = lambda row: None
    local_names: tuple[str, ...] = ()
    n_samples: int = 1
    trace: str | None = None


def by_keys(question: tuple[str, ...], answer: tuple[str, ...]) -> Callable[[Mapping[str, Any], str], tuple[str, str]]:
    """A reader that takes the first present of some dotted keys."""
    return lambda row, where: (text_field(row, question, where), text_field(row, answer, where))


def read_gsm8k(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    """GSM8K: the gold answer follows `####`, its thousands separators are dropped."""
    solution = text_field(row, ("answer",), where)
    return text_field(row, ("question",), where), solution.rpartition("####")[2].strip().replace(",", "")


def read_math(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    r"""MATH: the gold answer is a column of its own or the last `\boxed{}` of the solution."""
    question = text_field(row, ("problem", "question"), where)
    if "answer" in row:
        return question, text_field(row, ("answer",), where)
    return question, last_boxed(text_field(row, ("solution",), where)) or ""


def below_level_3(row: Mapping[str, Any]) -> str | None:
    level = str(row.get("level", "")).removeprefix("Level").strip()
    return None if level in ("3", "4", "5") else "level"


def read_dapo(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    """DAPO-Math-17k, processed (text columns) or as released (chat messages around the question)."""
    question = text_field(row, ("prompt.-1.content", "prompt"), where)
    if question.startswith(DAPO_BEFORE):
        question = question.partition("\n\n")[2].rpartition(DAPO_AFTER)[0]
    return question, text_field(row, ("reward_model.ground_truth", "solution"), where)


TRAINING_SETS = {
    "openr1_math_46k": QuestionSet(
        "openr1_math_46k",
        "Elliott/Openr1-Math-46k-8192",
        by_keys(("prompt.-1.content", "question", "problem"), ("reward_model.ground_truth", "answer")),
        trace="target.-1.content",  # DeepSeek-R1's, one assistant message
    ),
    "gsm8k": QuestionSet("gsm8k", "openai/gsm8k", read_gsm8k, config="main", trace="answer"),
    "math_l3-5": QuestionSet(
        "math_l3-5", "DigitalLearningGmbH/MATH-lighteval", read_math, drop=below_level_3, trace="solution"
    ),
    "dapo_math_17k": QuestionSet("dapo_math_17k", "open-r1/DAPO-Math-17k-Processed", read_dapo, config="all"),
}


def shuffled_choice(question: str, options: list[str], correct: int, seed: int, where: str) -> tuple[str, str]:
    """Question with its options in an order fixed by `seed` and the question itself, and the letter of the right one."""
    if not 0 <= correct < len(options):
        raise DataError(f"{where}: the right answer is not one of the {len(options)} options")
    order = list(range(len(options)))
    random.Random(f"{seed}\0{question}").shuffle(order)
    letter = chr(ord("A") + order.index(correct))
    return multiple_choice(question, [options[i] for i in order]), letter


def arc_options(row: Mapping[str, Any], where: str) -> tuple[str, list[str], int]:
    labels, key = text_fields(row, "choices.label", where), text_field(row, ("answerKey",), where)
    return text_field(row, ("question",), where), text_fields(row, "choices.text", where), _position(labels, key)


def gpqa_options(row: Mapping[str, Any], where: str) -> tuple[str, list[str], int]:
    keys = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    options = [text_field(row, (key,), where).strip() for key in keys]
    return text_field(row, ("Question",), where), options, 0


def mmlu_pro_options(row: Mapping[str, Any], where: str) -> tuple[str, list[str], int]:
    options = text_fields(row, "options", where)
    return text_field(row, ("question",), where), options, _position("ABCDEFGHIJ", text_field(row, ("answer",), where))


def _position(labels: Any, key: str) -> int:
    return labels.index(key) if key in labels else -1


def choice_reader(
    options: Callable[[Mapping[str, Any], str], tuple[str, list[str], int]], seed: int
) -> Callable[[Mapping[str, Any], str], tuple[str, str]]:
    """A reader of multiple-choice rows that shuffles the options."""

    def read(row: Mapping[str, Any], where: str) -> tuple[str, str]:
        try:
            question, texts, correct = options(row, where)
        except KeyError as key:
            raise DataError(f"{where}: no key {key}; the row has {', '.join(map(str, row))}") from None
        return shuffled_choice(question, texts, correct, seed, where)

    return read


def benchmarks(seed: int) -> dict[str, QuestionSet]:
    """The paper's nine benchmarks and GSM8K's test set; options shuffled by `seed`.

    Samples per question as in the paper (App. E.1): 32 for AIME and AMC, 1 elsewhere.
    """
    plain = by_keys(("problem", "question"), ("answer", "final_answer"))
    return {
        "aime24": QuestionSet("aime24", "HuggingFaceH4/aime_2024", plain, local_names=("aime24", "aime"), n_samples=32),
        "aime25": QuestionSet("aime25", "math-ai/aime25", plain, split="test", local_names=("aime25",), n_samples=32),
        "amc23": QuestionSet("amc23", "AI-MO/aimo-validation-amc", plain, local_names=("amc23", "amc"), n_samples=32),
        "math500": QuestionSet(
            "math500", "HuggingFaceH4/MATH-500", plain, split="test", local_names=("math500", "math")
        ),
        "minerva": QuestionSet("minerva", "math-ai/minervamath", plain, split="test", local_names=("minerva",)),
        "olympiadbench": QuestionSet(
            "olympiadbench",
            "math-ai/olympiadbench",
            plain,
            split="test",
            local_names=("olympiadbench", "olympiad_bench"),
        ),
        "arc_c": QuestionSet(
            "arc_c",
            "allenai/ai2_arc",
            choice_reader(arc_options, seed),
            config="ARC-Challenge",
            split="test",
            local_names=("arc_c", "arc_challenge"),
        ),
        "gpqa_diamond": QuestionSet(
            "gpqa_diamond",
            "Idavidrein/gpqa",
            choice_reader(gpqa_options, seed),
            config="gpqa_diamond",
            local_names=("gpqa_diamond", "gpqa"),
        ),
        "mmlu_pro": QuestionSet(
            "mmlu_pro",
            "TIGER-Lab/MMLU-Pro",
            choice_reader(mmlu_pro_options, seed),
            split="test",
            local_names=("mmlu_pro",),
        ),
        "gsm8k": QuestionSet(
            "gsm8k", "openai/gsm8k", read_gsm8k, config="main", split="test", local_names=("gsm8k", "test")
        ),
    }
