"""Each prompt template against its expected text and the authors' rows, in messages and rendered by a tokenizer."""

import hashlib
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
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
    'using the format: "<think>\n {thoughts} </think>\n". Each thought should include detailed analysis, '
    'brainstorming, verification, and refinement of ideas. After "</think>\n," in the Solution section, provide the '
    "final, logical, and accurate answer, clearly derived from the exploration in the Thought section. If applicable, "
    "include the answer in \\boxed{} for closed-form results like multiple choices or mathematical solutions."
)
# SHA-256 of the system message of all 2,259 rows of the authors' valid.parquet, for machines without that file.
THOUGHT_SHA256 = "a8747f1674d341836ab8fae3c29263fee4dd555f07259cdbc6dadf4104ea8926"
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
CALCULATOR = (
    "Please reason step by step, call the calculator for every computation, and put your final answer within \\boxed{}."
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = {"role": "user", "content": QUESTION}
EXPECTED = {
    "thought": [{"role": "system", "content": THOUGHT}, USER],
    "qwen_boxed": [{"role": "system", "content": BOXED}, USER],
    "qwen_calculator": [{"role": "system", "content": CALCULATOR}, USER],
    "plain": [USER],
    "llama_base": [{"role": "user", "content": f"User: {QUESTION}\nAnswer: Let's think step by step.\n"}],
}
AUTHORS_ROWS = Path(__file__).resolve().parents[3] / "shared" / "data" / "exgrpo" / "valid.parquet"


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, chat_template=CHATML, bos_token="<s>")


def rendered(name: str, tokenizer) -> str:
    template = load_template(name)
    tokenizer.chat_template = chat_template_for(template, tokenizer)
    return tokenizer.apply_chat_template(template.render(QUESTION), add_generation_prompt=True, tokenize=False)


def test_the_five_templates_and_no_other():
    assert template_names() == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_messages(name):
    assert load_template(name).render(QUESTION) == EXPECTED[name]


def test_thought_has_the_bytes_of_the_authors_system_message():
    [system, user] = load_template("thought").render(QUESTION)
    assert hashlib.sha256(system["content"].encode()).hexdigest() == THOUGHT_SHA256
    assert user == USER  # the question stands bare in the authors' rows, too


@pytest.mark.skipif(not AUTHORS_ROWS.is_file(), reason="the authors' valid.parquet is not here")
def test_thought_makes_the_prompt_of_every_row_of_the_authors():
    prompts = pq.read_table(AUTHORS_ROWS, columns=["prompt"])["prompt"].to_pylist()
    template = load_template("thought")
    assert len(prompts) == 2259
    assert all(prompt == template.render(prompt[-1]["content"]) for prompt in prompts)


@pytest.mark.parametrize("name", EXPECTED)
def test_no_template_spells_a_line_break_as_backslash_n(name):
    template = load_template(name)
    for text in (template.assistant_opening, *(content for _, content in template.messages)):
        assert not re.search(r"\\[nrt](?![a-z])", text)


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
    with pytest.raises(
        DataError, match="'thougth' is not one of llama_base, plain, qwen_boxed, qwen_calculator, thought"
    ):
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
