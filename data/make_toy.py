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
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from data import toy_task
from data.toy_task import Noise, Question, make_questions, render_question, render_solution
from verl_ext.dataset import verl_row
from verl_ext.files import move_durably, replacing, write_atomically

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
    n_train: int = TRAIN_QUESTIONS, n_heldout: int = HELDOUT_QUESTIONS, seed: int = DATA_SEED
) -> tuple[list[Question], list[Question]]:
    """Disjoint train and held-out questions."""
    questions = make_questions(n_train + n_heldout, np.random.default_rng(seed))
    return questions[:n_train], questions[n_train:]


def row_of(question: Question, split: str, index: int) -> dict:
    """One row in verl's schema."""
    text = render_question(question)
    prompt = [{"role": "user", "content": text}]
    return verl_row(toy_task.DATA_SOURCE, prompt, toy_task.answer(question), toy_task.question_id(text), split, index)


def write_parquet(questions: list[Question], split: str, path: Path) -> None:
    """Rows in verl's schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([row_of(q, split, i) for i, q in enumerate(questions)])
    with replacing(path) as new:
        pq.write_table(table, new)


def make_tokenizer():
    """Byte-level BPE in Qwen2's form: 256 bytes, the merges that build WORDS, three special tokens."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    merges = {(word[:i], word[i]): None for word in WORDS for i in range(1, len(word))}
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *dict.fromkeys(left + right for left, right in merges)]
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=list(merges),
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer):
    """A randomly initialised Qwen2 of 0.33M float32 parameters (head size 32, which vLLM's CPU attention supports)."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config).float()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def encode_prompt(tokenizer, question: Question) -> list[int]:
    """Token ids of the chat-formatted question, up to where the assistant's turn begins."""
    messages = [{"role": "user", "content": render_question(question)}]
    return tokenizer(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)).input_ids


def demonstration_batch(tokenizer, questions: list[Question], noise: Noise, rng: np.random.Generator):
    """`input_ids`, `labels`: int64 [len(questions), longest], right-padded; only solutions and end of turn are learnt."""
    import torch

    pairs = []
    for question in questions:
        solution = tokenizer(render_solution(question, noise, rng)).input_ids
        pairs.append((encode_prompt(tokenizer, question), [*solution, tokenizer.eos_token_id]))
    longest = max(len(prompt) + len(solution) for prompt, solution in pairs)
    input_ids = torch.full((len(pairs), longest), tokenizer.pad_token_id)
    labels = torch.full((len(pairs), longest), -100)
    for i, (prompt, solution) in enumerate(pairs):
        end = len(prompt) + len(solution)
        input_ids[i, :end] = torch.tensor(prompt + solution)
        labels[i, len(prompt) : end] = torch.tensor(solution)
    return input_ids, labels


def train(recipe: Recipe):
    """(model, tokenizer) after supervised training on fresh questions, none of them in the default splits."""
    import torch
    from tqdm import tqdm

    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    kept_out = frozenset(q for split in make_splits() for q in split)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    steps = recipe.clean_steps + recipe.noisy_steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.1)
    noisy = Noise(recipe.slip_easy, recipe.slip_hard, recipe.stop)
    progress = tqdm(range(steps), desc="training", unit="step")
    for step in progress:
        questions = make_questions(recipe.batch_size, rng, exclude=kept_out)
        noise = noisy if step >= recipe.clean_steps else Noise()
        input_ids, labels = demonstration_batch(tokenizer, questions, noise, rng)
        # Right padding under a causal mask: real tokens never see it, so no attention mask is needed.
        loss = model(input_ids=input_ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
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


def save(model, tokenizer, out: Path) -> None:
    """Write the Hugging Face folder file by file over `out`, each complete before it gets its name."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        for file in Path(scratch).iterdir():
            file.chmod(0o644)  # safetensors writes 0600
            move_durably(file, out / file.name)


def main_data(args: argparse.Namespace) -> None:
    train_split, heldout = make_splits(args.train, args.heldout, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    for split, questions in (("train", train_split), ("heldout", heldout)):
        path = args.out / f"{split}.parquet"
        write_parquet(questions, split, path)
        print(f"{path}: {len(questions)} questions")
    rows = [{"prompt": render_question(q), "response": render_solution(q), "source": "teacher"} for q in train_split]
    write_atomically(args.out / "traces.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))


def main_model(args: argparse.Namespace) -> None:
    model, tokenizer = train(Recipe(seed=args.seed))
    save(model, tokenizer, args.out)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    for split, questions in zip(("train", "heldout"), make_splits(), strict=True):
        counts = success_counts(model, tokenizer, questions)
        histogram = np.bincount(counts, minlength=9)
        print(f"{split}: pass rate {counts.mean() / 8:.3f}, questions per success count 0..8: {histogram.tolist()}")


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    data = modes.add_parser("data", help="train.parquet, heldout.parquet, and traces.jsonl of a perfect teacher")
    data.add_argument("--out", type=Path, required=True, help="folder, made if missing")
    data.add_argument("--train", type=positive_int, default=TRAIN_QUESTIONS, help="training questions (%(default)s)")
    data.add_argument("--heldout", type=positive_int, default=HELDOUT_QUESTIONS, help="test questions (%(default)s)")
    data.add_argument("--seed", type=int, default=DATA_SEED, help="(%(default)s)")
    data.set_defaults(run=main_data)
    model = modes.add_parser("model", help="the tiny base model and its tokenizer, about five minutes on one core")
    model.add_argument("--out", type=Path, required=True, help="folder, made if missing")
    model.add_argument("--seed", type=int, default=Recipe.seed, help="(%(default)s)")
    model.set_defaults(run=main_model)
    return parser.parse_args(argv)


if __name__ == "__main__":
    args = parse_args()
    args.run(args)
