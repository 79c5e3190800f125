"""Each prompt template against its expected text, in messages and rendered by a tokenizer."""

import sys

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data import prepare_tokenizer
from data.errors import DataError
from data.prompts import PromptTemplate, chat_template_for, load_template, multiple_choice, template_names

QUESTION = r"What is {1} + \frac{1}{2}?"
THOUGHT = (
    "Your task is to follow a systematic, thorough reasoning process before providing the final solution. This involves "
    "analyzing, summarizing, exploring, reassessing, and refining your thought process through multiple iterations. "
    "Structure your response into two sections: Thought and Solution. In the Thought section, present your reasoning "
    'using the format: "<think>\\n {thoughts} </think>\\n". Each thought should include detailed analysis, '
    'brainstorming, verification, and refinement of ideas. After "</think>\\n," in the Solution section, provide the '
    "final, logical, and accurate answer, clearly derived from the exploration in the Thought section. If applicable, "
    "include the answer in \\boxed{} for closed-form results like multiple choices or mathematical solutions."
)
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = {"role": "user", "content": QUESTION}
EXPECTED = {
    "thought": [{"role": "system", "content": THOUGHT}, USER],
    "qwen_boxed": [{"role": "system", "content": BOXED}, USER],
    "plain": [USER],
    "llama_base": [{"role": "user", "content": f"User: {QUESTION}\nAnswer: Let's think step by step.\n"}],
}


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, chat_template=CHATML, bos_token="<s>")


def rendered(name: str, tokenizer) -> str:
    template = load_template(name)
    tokenizer.chat_template = chat_template_for(template, tokenizer)
    return tokenizer.apply_chat_template(template.render(QUESTION), add_generation_prompt=True, tokenize=False)


def test_the_four_templates_and_no_other():
    assert template_names() == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_messages(name):
    assert load_template(name).render(QUESTION) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_only_thought_asks_for_the_think_format(name):
    assert load_template(name).think_format is (name == "thought")


def test_thought_opens_the_assistants_turn(tokenizer):
    expected = (
        f"<|im_start|>system\n{THOUGHT}<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered("thought", tokenizer) == expected + "<think>\n"


def test_a_turn_that_is_open_already_is_left_alone(tokenizer):
    tokenizer.chat_template = once = chat_template_for(load_template("thought"), tokenizer)
    assert once != CHATML
    assert chat_template_for(load_template("thought"), tokenizer) == once


def test_the_opening_belongs_to_the_generation_prompt_only(tokenizer):
    tokenizer.chat_template = chat_template_for(load_template("thought"), tokenizer)
    assert "<think>" not in tokenizer.apply_chat_template([USER], add_generation_prompt=False, tokenize=False)


def test_llama_base_is_raw_text_after_the_bos_token(tokenizer):
    assert rendered("llama_base", tokenizer) == f"<s>User: {QUESTION}\nAnswer: Let's think step by step.\n"


def test_llama_base_without_a_bos_token_or_a_chat_template(tokenizer):
    tokenizer.bos_token = None
    tokenizer.chat_template = None
    assert rendered("llama_base", tokenizer) == f"User: {QUESTION}\nAnswer: Let's think step by step.\n"


@pytest.mark.parametrize("name", ["qwen_boxed", "plain"])
def test_ordinary_templates_leave_the_chat_template_alone(name, tokenizer):
    assert chat_template_for(load_template(name), tokenizer) == CHATML


def test_a_chat_prompt_needs_a_chat_template(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="template thought needs a chat template"):
        chat_template_for(load_template("thought"), tokenizer)


def test_unknown_and_malformed_templates():
    with pytest.raises(DataError, match="'thougth' is not one of llama_base, plain, qwen_boxed, thought"):
        load_template("thougth")
    with pytest.raises(DataError, match="must occur once"):
        PromptTemplate("none", (("user", "no slot"),), think_format=False)


def test_the_prepared_tokenizer_folder(tokenizer, tmp_path, monkeypatch, capsys):
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--template", "thought", "--out", str(tmp_path / "prepared")]
    monkeypatch.setattr(sys, "argv", ["prepare_tokenizer.py", *arguments])
    prepare_tokenizer.main()
    assert "chat template changed" in capsys.readouterr().out
    loaded = AutoTokenizer.from_pretrained(tmp_path / "prepared")
    assert loaded.apply_chat_template([USER], add_generation_prompt=True, tokenize=False).endswith("<think>\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "prepared"]
    with pytest.raises(DataError, match="exists already"):
        prepare_tokenizer.main()


def test_multiple_choice_layout():
    expected = "Why {options}?\n\nA. x\nB. {question}\n\nAnswer with the letter of the correct option."
    assert multiple_choice("Why {options}?", ["x", "{question}"]) == expected
