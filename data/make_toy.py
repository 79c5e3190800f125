"""Make the embedded default: the toy task as parquet (`data`) and the tiny base model (`model`), offline.

python data/make_toy.py data --out data/parquet/toy      # train.parquet, heldout.parquet, a teacher's traces.jsonl
python data/make_toy.py model --out data/toy/model       # tokenizer and weights, as shipped

Both are deterministic: `data` gives the same bytes with the same pyarrow, `model` the same weights on the same machine
with the same torch (one thread, seeded; another CPU may round differently, so a model rebuilt elsewhere need not equal
the shipped one bit by bit).
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from data import base_model, toy_task
from data.base_model import Demonstration, begin, fit, padded, ship
from data.toy_task import Noise, Question, make_questions, render_question, render_solution
from verl_ext.dataset import verl_row
from verl_ext.files import replacing, write_atomically

TRAIN_QUESTIONS, HELDOUT_QUESTIONS, DATA_SEED = 512, 128, 0
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Words that the tokenizer keeps whole, in the byte-level alphabet ("Ġ" is a space). Digits always stay single.
WORDS = ("\\boxed", "user", "assistant", "system", "Start", "mod", "Ġ+", "Ġ-", "Ġ*", "Ġ(")


@dataclass(frozen=True)
class Recipe:
    """How the base model is trained: on clean demonstrations first, so that it can do the task, then on noisy ones.

    The noise, not a lack of skill, then sets its pass rate, and reinforcement learning can raise it within tens of steps.
    """

    clean_steps: int = 350
    noisy_steps: int = 200
    slip_easy: float = 0.02
    slip_hard: float = 0.27
    stop: float = 0.15
    batch_size: int = 128
    learning_rate: float = 3e-3
    seed: int = 0


def make_splits(
    n_train: int = TRAIN_QUESTIONS,
    n_heldout: int = HELDOUT_QUESTIONS,
    seed: int = DATA_SEED,
    make: Callable[..., list[Question]] = make_questions,
) -> tuple[list[Question], list[Question]]:
    """Disjoint train and held-out questions, of those that `make(n, rng)` gives."""
    questions = make(n_train + n_heldout, np.random.default_rng(seed))
    return questions[:n_train], questions[n_train:]


def row_of(question: Question, split: str, index: int) -> dict:
    """One row in verl's schema."""
    text = render_question(question)
    prompt = [{"role": "user", "content": text}]
    return verl_row(toy_task.DATA_SOURCE, prompt, toy_task.answer(question), toy_task.question_id(text), split, index)


def write_parquet(rows: list[dict], path: Path) -> None:
    """Rows in verl's schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows)
    with replacing(path) as new:
        pq.write_table(table, new)


def make_tokenizer():
    """The tokenizer of the shipped model."""
    return base_model.make_tokenizer(WORDS, CHAT_TEMPLATE)


def encode_prompt(tokenizer, question: Question) -> list[int]:
    """Token ids of the chat-formatted question, up to where the assistant's turn begins."""
    messages = [{"role": "user", "content": render_question(question)}]
    return tokenizer(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)).input_ids


def demonstration_batch(tokenizer, questions: list[Question], noise: Noise, rng: np.random.Generator):
    """`input_ids`, `labels`: int64 [len(questions), longest], right-padded; only solutions and end of turn are learnt."""
    demonstrations = []
    for question in questions:
        solution = tokenizer(render_solution(question, noise, rng)).input_ids
        prompt, response = encode_prompt(tokenizer, question), [*solution, tokenizer.eos_token_id]
        learnt = [False] * len(prompt) + [True] * len(response)
        demonstrations.append(Demonstration([*prompt, *response], learnt))
    return padded(demonstrations, tokenizer.pad_token_id)


def train(recipe: Recipe):
    """(model, tokenizer) after supervised training on fresh questions, none of them in the default splits."""
    kept_out = frozenset(q for split in make_splits() for q in split)
    tokenizer = make_tokenizer()
    model, rng = begin(tokenizer, recipe.seed)
    steps = recipe.clean_steps + recipe.noisy_steps
    noisy = Noise(recipe.slip_easy, recipe.slip_hard, recipe.stop)
    batches = (
        demonstration_batch(
            tokenizer,
            make_questions(recipe.batch_size, rng, exclude=kept_out),
            noisy if step >= recipe.clean_steps else Noise(),
            rng,
        )
        for step in range(steps)
    )
    fit(model, batches, steps, recipe.learning_rate)
    return model.eval(), tokenizer


def success_counts(
    model, tokenizer, questions: list[Question], group_size: int = 8, temperature: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Successes among `group_size` sampled responses to each question, int64 [len(questions)]."""
    import torch

    torch.manual_seed(seed)
    chunk = max(1, 128 // group_size)  # larger batches are slower per response on a CPU
    texts: list[str] = []
    for i in range(0, len(questions), chunk):
        texts += sample_responses(model, tokenizer, questions[i : i + chunk], group_size, temperature)
    answers = [toy_task.answer(q) for q in questions for _ in range(group_size)]
    solved = [toy_task.grade(text, answer) for text, answer in zip(texts, answers, strict=True)]
    return np.reshape(solved, (len(questions), group_size)).sum(axis=1)


def sample_responses(model, tokenizer, questions: list[Question], group_size: int, temperature: float) -> list[str]:
    """`group_size` sampled responses to each question, one question after another, from torch's global generator."""
    import torch

    prompts = tokenizer.pad(
        {"input_ids": [encode_prompt(tokenizer, q) for q in questions]}, padding_side="left", return_tensors="pt"
    )
    with torch.no_grad():
        output = model.generate(
            **prompts,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            num_return_sequences=group_size,
            max_new_tokens=toy_task.MAX_RESPONSE_TOKENS,
        )
    return tokenizer.batch_decode(output[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)


def write_splits(out: Path, splits: Sequence[Sequence[Question]], row_of: Callable[..., dict]) -> None:
    """train.parquet and heldout.parquet of `row_of(question, split, index)`."""
    out.mkdir(parents=True, exist_ok=True)
    for split, questions in zip(("train", "heldout"), splits, strict=True):
        path = out / f"{split}.parquet"
        write_parquet([row_of(q, split, i) for i, q in enumerate(questions)], path)
        print(f"{path}: {len(questions)} questions")


def main_data(args: argparse.Namespace) -> None:
    train_split, heldout = make_splits(args.train, args.heldout, args.seed)
    write_splits(args.out, (train_split, heldout), row_of)
    rows = [{"prompt": render_question(q), "response": render_solution(q), "source": "teacher"} for q in train_split]
    write_atomically(args.out / "traces.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))


def main_model(args: argparse.Namespace) -> None:
    ship(*train(Recipe(seed=args.seed)), args.out, make_splits(), success_counts)


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def parse_args(
    argv: list[str] | None = None, doc: str = __doc__, run_data: Callable = main_data, run_model: Callable = main_model
) -> argparse.Namespace:
    """Modes `data` and `model`; the chosen one's function is in `run`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    data = modes.add_parser("data", help="train.parquet, heldout.parquet and what else there is")
    data.add_argument("--out", type=Path, required=True, help="folder, made if missing")
    data.add_argument("--train", type=positive_int, default=TRAIN_QUESTIONS, help="training questions (%(default)s)")
    data.add_argument("--heldout", type=positive_int, default=HELDOUT_QUESTIONS, help="test questions (%(default)s)")
    data.add_argument("--seed", type=int, default=DATA_SEED, help="(%(default)s)")
    data.set_defaults(run=run_data)
    model = modes.add_parser("model", help="the tiny base model and its tokenizer, minutes on one core")
    model.add_argument("--out", type=Path, required=True, help="folder, made if missing")
    model.add_argument("--seed", type=int, default=Recipe.seed, help="(%(default)s)")
    model.set_defaults(run=run_model)
    return parser.parse_args(argv)


if __name__ == "__main__":
    args = parse_args()
    args.run(args)
