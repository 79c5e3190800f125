"""Questions with gold answers: text normalisation, content ids, and rows in verl's schema."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from data.errors import DataError
from data.prompts import PromptTemplate
from verl_ext import dataset
from verl_ext.text import normalised as normalise

ID_BYTES = 16


@dataclass(frozen=True)
class Record:
    """One question. `index` is its 0-based position in the source; `trace` a written solution of it, "" without one."""

    question: str
    answer: str
    index: int
    trace: str = ""

    @property
    def question_id(self) -> str:
        return question_id(self.question, self.answer)


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

    Raises DataError naming `where` and the key when none is there, or the value is neither text nor a number, or no text
    that a file can hold.
    """
    for key in keys:
        try:
            value = lookup(row, key)
        except KeyError:
            continue
        if isinstance(value, list) and len(value) == 1:
            value = value[0]  # OlympiadBench keeps a single final answer in a list
        return "" if value is None else _text(value, key, where)
    raise DataError(f"{where}: no key {' or '.join(map(repr, keys))}; the row has {', '.join(map(str, row))}")


def text_fields(row: Mapping[str, Any], key: str, where: str) -> list[str]:
    """The list of texts or numbers under a dotted key, as texts. Raises KeyError, and DataError as `text_field` does."""
    values = lookup(row, key)
    if not isinstance(values, list | tuple):
        raise DataError(f"{where}: key {key!r} must hold a list, not {type(values).__name__}")
    return [_text(value, key, where) for value in values]


def _text(value: Any, key: str, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise DataError(f"{where}: key {key!r} must hold text or a number, not {type(value).__name__}")
    text = f"{value:f}" if isinstance(value, Decimal) else str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: key {key!r} holds \\u{ord(text[error.start]):04x}, half a character (a lone surrogate), which cannot be "
            "written to a file"
        ) from None
    return text


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
