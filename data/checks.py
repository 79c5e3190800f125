"""Checks of a set of questions: gold answers that grade as themselves, prompt length, overlap with evaluation sets."""

import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.prompts import PromptTemplate
from data.records import Record, normalise, text_field
from data.sources import SUFFIXES, open_source
from verl_ext.rewards import Grader, GradingError, GradingTimeout
from verl_ext.rewards.equivalence import grade_golds
from verl_ext.rewards.rules import ANSWER_LIMIT, find_rule, is_absurd, math_rule

NGRAM = 13
CHUNK = 32  # gold answers graded in one call
CHARACTERS_PER_TOKEN = 3  # without a tokenizer: an estimate on the safe side for English mathematics
QUESTION_KEYS = ("problem", "question", "Question", "prompt.-1.content")
_WORD = re.compile(r"[^\W_]+")

OK = "ok"
AS_TEXT = "equal only as text"  # Math-Verify finds no mathematics in it: only the same text is graded as correct
UNEQUAL = "not equal to itself"
UNVERIFIABLE = "unverifiable"  # error, timeout or refused by the pre-check


def check_golds(
    answers: Iterable[str], data_source: str, workers: int, advance: Callable[[int], None]
) -> dict[str, str]:
    """Grade each distinct gold answer against itself by the reward's own rule.

    Returns answer -> OK, AS_TEXT, UNEQUAL or UNVERIFIABLE. `advance` is called with the number of answers just graded.
    """
    rule = find_rule(data_source)
    distinct = list(dict.fromkeys(answers))
    with Grader(workers) as grader, ThreadPoolExecutor(2 * workers) as threads:

        def check(chunk: list[str]) -> list[str]:
            if rule is math_rule:
                found = _check_mathematics(chunk, grader)
            else:
                found = [OK if rule("\\boxed{" + a + "}", a, grader).score == 1.0 else UNEQUAL for a in chunk]
            advance(len(chunk))
            return found

        chunks = [distinct[i : i + CHUNK] for i in range(0, len(distinct), CHUNK)]
        found = [status for part in threads.map(check, chunks) for status in part]
    return dict(zip(distinct, found, strict=True))


def _check_mathematics(answers: list[str], grader: Grader) -> list[str]:
    """Statuses of a chunk, graded in one call; one by one where that fails, to find the culprit."""
    if any(is_absurd(answer, ANSWER_LIMIT) for answer in answers):
        return [UNVERIFIABLE] if len(answers) == 1 else [_check_mathematics([a], grader)[0] for a in answers]
    try:
        graded = grader.run(grade_golds, answers)
    except (GradingError, GradingTimeout):
        return [UNVERIFIABLE] if len(answers) == 1 else [_check_mathematics([a], grader)[0] for a in answers]
    return [UNEQUAL if not equal else OK if mathematics else AS_TEXT for equal, mathematics in graded]


def gold_report(status: dict[str, str], examples: int) -> dict[str, Any]:
    """Counts of `check_golds` and up to `examples` answers of every kind but OK, for a manifest."""
    kinds = (AS_TEXT, UNEQUAL, UNVERIFIABLE)
    listed = {kind: [answer for answer, found in status.items() if found == kind] for kind in kinds}
    counts = {kind: len(answers) for kind, answers in listed.items()}
    return {"distinct": len(status), "counts": counts, "answers": {k: v[:examples] for k, v in listed.items() if v}}


def prompt_tokens(records: Sequence[Record], template: PromptTemplate, tokenizer: Any | None) -> list[int]:
    """Tokens of each rendered prompt, chat format included; without a tokenizer estimated from the characters."""
    messages = [template.render(record.question) for record in records]
    if tokenizer is None:
        return [-(-sum(len(m["content"]) for m in prompt) // CHARACTERS_PER_TOKEN) for prompt in messages]
    prompts = [tokenizer.apply_chat_template(m, add_generation_prompt=True, tokenize=False) for m in messages]
    return [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]] if prompts else []


def ngrams(text: str) -> set[str]:
    """The NGRAM-word windows of a text, lower case, punctuation ignored; empty for a shorter text."""
    words = _WORD.findall(normalise(text).lower())
    return {" ".join(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)}


def evaluation_questions(folder: Path) -> dict[str, list[str]]:
    """Questions of every data file in `folder` by file stem. Raises DataError if it has none."""
    files = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES) if folder.is_dir() else []
    if not files:
        raise DataError(f"{folder}: no evaluation file ({', '.join(SUFFIXES)}) is there")
    return {
        file.stem: [text_field(row, QUESTION_KEYS, where) for where, row in open_source(str(file)).rows()]
        for file in files
    }


def contamination(records: Sequence[Record], evaluation: dict[str, list[str]]) -> dict[str, dict[str, list[str]]]:
    """Question ids of records that share their text, or a 13-gram, with an evaluation question, per evaluation set."""
    texts: dict[str, set[str]] = {}
    grams: dict[str, set[str]] = {}
    for name, questions in evaluation.items():
        for question in questions:
            texts.setdefault(normalise(question).lower(), set()).add(name)
            for gram in ngrams(question):
                grams.setdefault(gram, set()).add(name)
    found: dict[str, dict[str, list[str]]] = {name: {"exact": [], f"{NGRAM}-gram": []} for name in evaluation}
    for record in records:
        for name in sorted(texts.get(normalise(record.question).lower(), ())):
            found[name]["exact"].append(record.question_id)
        shared = grams.keys() & ngrams(record.question)
        for name in sorted(set().union(*(grams[gram] for gram in shared))):
            found[name][f"{NGRAM}-gram"].append(record.question_id)
    return found
