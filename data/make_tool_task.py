"""Make the embedded tool task: questions as parquet (`data`) and the tiny base model that calls a calculator (`model`).

python data/make_tool_task.py data --out data/parquet/tool      # train.parquet, heldout.parquet
python data/make_tool_task.py model --out data/tool/model       # tokenizer and weights, as shipped

Calls are in the form that verl's `hermes` parser reads. As deterministic as data/make_toy.py.
"""

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from data import base_model, make_toy, tool_task, toy_task
from data.base_model import Demonstration, begin, fit, padded, ship
from data.make_toy import parse_args, write_splits
from data.tool_task import MAX_CALLS, MAX_RESPONSE_TOKENS, Turn, replies, solve_in_turns, tool_questions
from data.toy_task import Noise, Question, render_question
from verl_ext.dataset import verl_row

CALL, CALL_END = '<tool_call>{"name": "calculate", "arguments": {"expression": "', '"}}</tool_call>'  # a token each
WORDS = (
    "\\boxed",
    "user",
    "assistant",
    "system",
    "tool",
    "calculate",
    "expression",
    "Start",
    "mod",
    "Ġ+",
    "Ġ-",
    "Ġ*",
    "Ġ(",
)
NUMBERS = tuple(f"{n:02d}" for n in range(100))  # a token each: a model of this size is slow to learn to copy two
# The name and the parameters of a tool, not all of its schema: a prompt for a model of this size must be short.
CHAT_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool['function']['name'] }}"
    "({{ tool['function']['parameters']['properties'] | join(', ') }}){% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% for call in m['tool_calls'] or [] %}"
    "<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What the template reads of it.
SCHEMA = [{"function": {"name": "calculate", "parameters": {"properties": {"expression": {}}}}}]
make_splits = partial(make_toy.make_splits, make=tool_questions)  # disjoint train and held-out questions


@dataclass(frozen=True)
class Recipe:
    """How the base model is trained: on clean demonstrations first, so that it can do the task, then on noisy ones."""

    clean_steps: int = 450
    noisy_steps: int = 100
    guess_easy: float = 0.3
    guess_hard: float = 0.55
    stop: float = 0.2
    batch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 0


def row_of(question: Question, split: str, index: int) -> dict:
    """One row in verl's schema."""
    text, source = render_question(question), tool_task.DATA_SOURCE
    prompt = [{"role": "user", "content": text}]
    return verl_row(source, prompt, toy_task.answer(question), toy_task.question_id(text, source), split, index)


def make_tokenizer():
    """The tokenizer of the shipped model."""
    return base_model.make_tokenizer(WORDS, CHAT_TEMPLATE, whole=(CALL, CALL_END, *NUMBERS))


def encode_prompt(tokenizer, question: Question) -> list[int]:
    """Token ids of tools and question, up to where the assistant's first turn begins."""
    messages = [{"role": "user", "content": render_question(question)}]
    text = tokenizer.apply_chat_template(messages, tools=SCHEMA, add_generation_prompt=True, tokenize=False)
    return tokenizer(text).input_ids


def encode_turn(tokenizer, turn: Turn) -> list[int]:
    """What the model writes in a turn, its end included."""
    call = "" if turn.call is None else f"{CALL}{turn.call}{CALL_END}"
    return [*tokenizer(turn.text + call).input_ids, tokenizer.eos_token_id]


def encode_reply(tokenizer, reply: str) -> list[int]:
    """What verl's tool loop puts behind a turn that called the tool: rest of its end, reply, the next turn's opening."""
    return tokenizer(f"\n<|im_start|>tool\n{reply}<|im_end|>\n<|im_start|>assistant\n").input_ids


def demonstration(tokenizer, question: Question, turns: list[Turn]) -> Demonstration:
    """Prompt, turns and replies; only the turns are learnt."""
    ids = encode_prompt(tokenizer, question)
    learnt = [False] * len(ids)
    for turn, reply in zip(turns, replies(turns), strict=True):
        own, given = encode_turn(tokenizer, turn), [] if reply is None else encode_reply(tokenizer, reply)
        ids += own + given
        learnt += [True] * len(own) + [False] * len(given)
    return Demonstration(ids, learnt)


def train(recipe: Recipe):
    """(model, tokenizer) after supervised training on fresh questions, none of them in the default splits."""
    kept_out = frozenset(q for split in make_splits() for q in split)
    tokenizer = make_tokenizer()
    model, rng = begin(tokenizer, recipe.seed)

    def batch(noise: Noise):
        questions = tool_questions(recipe.batch_size, rng, kept_out)
        solved = [demonstration(tokenizer, q, solve_in_turns(q, noise, rng)) for q in questions]
        return padded(solved, tokenizer.pad_token_id)

    noisy = Noise(recipe.guess_easy, recipe.guess_hard, recipe.stop)
    for steps, noise in ((recipe.clean_steps, Noise()), (recipe.noisy_steps, noisy)):
        fit(model, (batch(noise) for _ in range(steps)), steps, recipe.learning_rate)
    return model.eval(), tokenizer


def success_counts(model, tokenizer, questions: list[Question], group_size: int = 8, seed: int = 0) -> np.ndarray:
    """Successes among `group_size` responses to each question at temperature 1, int64 [len(questions)]."""
    import torch

    torch.manual_seed(seed)
    asked = [question for question in questions for _ in range(group_size)]
    last = [text for i in range(0, len(asked), 128) for text in converse(model, tokenizer, asked[i : i + 128])]
    solved = [toy_task.grade(text, toy_task.answer(question)) for text, question in zip(last, asked, strict=True)]
    return np.reshape(solved, (len(questions), group_size)).sum(axis=1)


def converse(model, tokenizer, questions: list[Question]) -> list[str]:
    """The last turn of a sampled response to each question, from torch's global generator."""
    histories = [encode_prompt(tokenizer, question) for question in questions]
    texts, going = [""] * len(questions), list(range(len(questions)))
    for _ in range(MAX_CALLS):
        for i, ids in zip(going, sample_turns(model, tokenizer, [histories[i] for i in going]), strict=True):
            histories[i] += ids
            texts[i] = tokenizer.decode(ids, skip_special_tokens=True)
        going = [i for i in going if texts[i].endswith(CALL_END)]
        for i in going:
            call = texts[i].rpartition(CALL)[2].removesuffix(CALL_END)
            histories[i] += encode_reply(tokenizer, tool_task.calculate(call))
        if not going:
            break
    return texts


def sample_turns(model, tokenizer, prompts: list[list[int]]) -> list[list[int]]:
    """One turn after each of `prompts`, with its end unless it was cut off."""
    import torch

    padded_prompts = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**padded_prompts, do_sample=True, top_k=0, max_new_tokens=MAX_RESPONSE_TOKENS)
    rows, eos = output[:, padded_prompts["input_ids"].shape[1] :].tolist(), tokenizer.eos_token_id
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def main_data(args: argparse.Namespace) -> None:
    write_splits(args.out, make_splits(args.train, args.heldout, args.seed), row_of)


def main_model(args: argparse.Namespace) -> None:
    ship(*train(Recipe(seed=args.seed)), args.out, make_splits(), success_counts)


if __name__ == "__main__":
    args = parse_args(doc=__doc__, run_data=main_data, run_model=main_model)
    args.run(args)
