"""Prompts and responses as the run's rollouts have them: arguments of the template, what it opens itself, ends of turn."""

import pytest
from toy_target import MODEL, imported, row_of, stored, target, write

from recipe.exgrpo.experience.rendering import Renderer
from recipe.exgrpo.experience.tokenizers import load_tokenizer

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if thinking %}<think>\n{% endif %}{% endif %}"
)
ASKED = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def tokenizer():
    """The toy's, under a template that may open the thought."""
    found = load_tokenizer(MODEL)
    found.chat_template = THINKING
    return found


def test_arguments_of_the_template_are_rendered(tokenizer):
    for thinking, opening in ((True, "<think>\n"), (False, "")):
        ids = Renderer(tokenizer, {"thinking": thinking}).prompt_ids(row_of("2+2")["prompt"])
        assert ids.tolist() == tokenizer(ASKED + opening)["input_ids"]


@pytest.mark.parametrize(
    ("thinking", "text", "left"),
    [
        (True, "<think>\nso</think>=4", "so</think>=4"),
        (True, "<think>so</think>=4", "<think>so</think>=4"),  # not what the template writes
        (False, "<think>\nso</think>=4", "<think>\nso</think>=4"),
        (True, "so</think>=4<|im_end|>", "so</think>=4"),
    ],
)
def test_a_thought_that_the_template_opens_is_not_opened_twice(tokenizer, tmp_path, thinking, text, left):
    on = target(tokenizer=tokenizer, renderer=Renderer(tokenizer, {"thinking": thinking}))
    path = write(tmp_path / "a.jsonl", {"question_id": "2+2", "response": text})
    (found,) = stored(imported(path, on=on)[0])
    assert found.token_ids.tolist() == [*tokenizer(left)["input_ids"], tokenizer.eos_token_id]
