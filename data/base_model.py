"""The tiny base models that are shipped: tokenizer, Qwen2 of 0.3M parameters, supervised training, and their folder."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

IGNORED = -100  # the label of a token that is not learnt, as torch's cross entropy has it


@dataclass(frozen=True)
class Demonstration:
    """Token ids of a sequence and, for each, whether it is learnt."""

    ids: list[int]
    learnt: list[bool]


def make_tokenizer(words: Sequence[str], chat_template: str, whole: Sequence[str] = ()):
    """Byte-level BPE in Qwen2's form: 256 bytes, the merges that build `words`, three special tokens, and `whole` texts.

    Words are in the byte-level alphabet ("Ġ" is a space); digits always stay single. A text of `whole` is one token wherever
    it stands, punctuation and spaces included, and no special one: decoding keeps it.
    """
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2Tokenizer

    merges = {(word[:i], word[i]): None for word in words for i in range(1, len(word))}
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
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in whole])
    tokenizer.chat_template = chat_template
    return tokenizer


def begin(tokenizer, seed: int):
    """(a new model, the generator of its demonstrations), both of `seed`; training is on one thread."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return make_model(tokenizer), np.random.default_rng(seed)


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


def padded(demonstrations: Sequence[Demonstration], pad: int):
    """`input_ids`, `labels`: int64 [n, longest], right-padded; labels of tokens that are not learnt are `IGNORED`."""
    import torch

    longest = max(len(one.ids) for one in demonstrations)
    input_ids = torch.full((len(demonstrations), longest), pad)
    labels = torch.full((len(demonstrations), longest), IGNORED)
    for i, one in enumerate(demonstrations):
        ids = torch.tensor(one.ids)
        input_ids[i, : len(ids)] = ids
        labels[i, : len(ids)] = torch.where(torch.tensor(one.learnt), ids, IGNORED)
    return input_ids, labels


def fit(model, batches: Iterable, steps: int, learning_rate: float) -> None:
    """Train `model` in place on the first `steps` of `batches` (`padded`): one cycle of AdamW."""
    import torch
    from tqdm import tqdm

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    progress = tqdm(range(steps), desc="training", unit="step")
    for step, (input_ids, labels) in zip(progress, batches, strict=False):
        # Right padding under a causal mask: real tokens never see it, so no attention mask is needed.
        loss = model(input_ids=input_ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")


def save(model, tokenizer, out: Path) -> None:
    """Write the Hugging Face folder file by file over `out`, each complete before it gets its name."""
    from verl_ext.files import move_durably

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        for file in Path(scratch).iterdir():
            file.chmod(0o644)  # safetensors writes 0600
            move_durably(file, out / file.name)


def ship(model, tokenizer, out: Path, splits: Sequence[Sequence], success_counts: Callable) -> None:
    """Save, and print what `success_counts(model, tokenizer, questions)` finds on the two splits, of 8 responses each."""
    save(model, tokenizer, out)
    print(f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    for split, questions in zip(("train", "heldout"), splits, strict=True):
        print(described(split, success_counts(model, tokenizer, questions), 8))


def described(split: str, counts, group_size: int) -> str:
    """Pass rate and spread of success counts, int [questions], in a line."""
    histogram = [int((counts == k).sum()) for k in range(group_size + 1)]
    rate = counts.mean() / group_size
    return f"{split}: pass rate {rate:.3f}, questions per success count 0..{group_size}: {histogram}"
