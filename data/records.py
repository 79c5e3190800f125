"""Questions with gold answers: text normalisation, content ids, and rows in verl's schema."""

import hashlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.errors import DataError
from data.prompts import PromptTemplate
from verl_ext import dataset

ID_BYTES = 16


@dataclass(frozen=True)
class Record:
    """One question. `index` is its 0-based position in the source."""

    question: str
    answer: str
    index: int

    @property
    def question_id(self) -> str:
        return question_id(self.question, self.answer)


def normalise(text: str) -> str:
    """NFC, with every run of white space made one space: what counts as the same text."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def question_id(question: str, answer: str) -> str:
    """Content id: 32 hexadecimal digits, the same in any order of rows, template, run and machine."""
    content = normalise(question) + "\0" + normalise(answer)
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=ID_BYTES).hexdigest()


def lookup(row: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key; whole numbers index lists (`prompt.-1.content`). Raises KeyError."""
    value: Any = row
    for part in key.split("."):
        try:
            value = value[int(part)] if isinstance(value, list | tuple) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise KeyError(key) from None
    return value


def text_field(row: Mapping[str, Any], keys: tuple[str, ...], where: str) -> str:
    """The first of `keys` that the row has, as text; numbers are written out.

    Raises DataError naming `where` and the key when none is there or the value is neither text nor a number.
    """
    for key in keys:
        try:
            value = lookup(row, key)
        except KeyError:
            continue
        if isinstance(value, list) and len(value) == 1:
            value = value[0]  # OlympiadBench keeps a single final answer in a list
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise DataError(f"{where}: key {key!r} must hold text or a number, not {type(value).__name__}")
        return value if isinstance(value, str) else str(value)
    raise DataError(f"{where}: no key {' or '.join(map(repr, keys))}; the row has {', '.join(map(str, row))}")


def verl_row(
    record: Record, data_source: str, split: str, template: PromptTemplate, n_samples: int | None = None
) -> dict[str, Any]:
    """A row in verl's schema. `extra_info.think_format` tells the reward which format the prompt asked for.

    `n_samples`: samples per question in evaluation, `extra_info.n_samples`; left out for training data.
    """
    info: dict[str, Any] = {"think_format": template.think_format}
    if n_samples is not None:
        info["n_samples"] = n_samples
    prompt = template.render(record.question)
    return dataset.verl_row(data_source, prompt, record.answer, record.question_id, split, record.index, **info)
