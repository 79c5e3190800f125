"""Prompt templates: named files in data/templates, shared by training, validation and evaluation.

A template gives chat messages with a `{question}` in one of them. verl renders the messages with the tokenizer's chat
template and opens the assistant's turn. Two templates need more than an ordinary chat template gives: `thought` wants
that turn to begin with `<think>`, `llama_base` wants no chat format at all. `chat_template_for` writes the Jinja that
does it; data/prepare_tokenizer.py saves it with the tokenizer, and unmodified verl takes that folder as
`actor_rollout_ref.model.tokenizer_path` (prompt filter, rollout and the tokenizer in checkpoints all follow it).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.errors import DataError

TEMPLATES = Path(__file__).parent / "templates"
SLOT = "{question}"
CONCATENATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True)
class PromptTemplate:
    """A named prompt.

    Attributes:
        messages: (role, content) pairs; exactly one content holds `{question}`, once.
        think_format: the response must end its thought with `</think>` to be rewarded.
        assistant_opening: text that begins the assistant's turn, "" for none.
        raw: the prompt is the contents alone, without a chat format.
    """

    name: str
    messages: tuple[tuple[str, str], ...]
    think_format: bool
    assistant_opening: str = ""
    raw: bool = False

    def __post_init__(self) -> None:
        if sum(content.count(SLOT) for _, content in self.messages) != 1:
            raise DataError(f"template {self.name}: {SLOT} must occur once in its messages")

    def render(self, question: str) -> list[dict[str, str]]:
        """Chat messages for one question."""
        return [{"role": role, "content": content.replace(SLOT, question)} for role, content in self.messages]


def template_names() -> list[str]:
    return sorted(path.stem for path in TEMPLATES.glob("*.yaml"))


def load_template(name: str) -> PromptTemplate:
    """Read data/templates/<name>.yaml. Raises DataError for an unknown name or a malformed file."""
    if name not in template_names():
        raise DataError(f"template {name!r} is not one of {', '.join(template_names())}")
    fields = yaml.safe_load((TEMPLATES / f"{name}.yaml").read_text(encoding="utf-8"))
    messages = tuple((message["role"], message["content"]) for message in fields.pop("messages"))
    try:
        return PromptTemplate(name, messages, **fields)
    except TypeError as error:
        raise DataError(f"template {name}: {error}") from None


def multiple_choice(question: str, options: list[str]) -> str:
    """The question with lettered options, as data/templates/multiple_choice.txt lays them out."""
    layout = (TEMPLATES / "multiple_choice.txt").read_text(encoding="utf-8").rstrip("\n")
    lettered = "\n".join(f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options))
    before, _, after = layout.partition(SLOT)
    return before + question + after.replace("{options}", lettered)


def chat_template_for(template: PromptTemplate, tokenizer: Any) -> str:
    """The Jinja chat template under which `tokenizer` renders `template` as it is meant.

    Unchanged where the tokenizer's own already opens the assistant's turn so. Raises DataError for a chat prompt and a
    tokenizer without a chat template.
    """
    if template.raw:
        return CONCATENATE
    if not tokenizer.chat_template:
        raise DataError(
            f"template {template.name} needs a chat template and the tokenizer {tokenizer.name_or_path} has none"
        )
    probe = tokenizer.apply_chat_template(template.render("1+1?"), add_generation_prompt=True, tokenize=False)
    if not template.assistant_opening or probe.endswith(template.assistant_opening):
        return tokenizer.chat_template
    opening = json.dumps(template.assistant_opening)
    return tokenizer.chat_template + "{%- if add_generation_prompt %}{{- " + opening + " }}{%- endif %}"
