"""Tokenizers from folders on this machine, and text of token ids as the reward sees it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BESIDE = ("tokenizer", "actor/huggingface")  # where a state, and a run's checkpoint, keep theirs


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer in a folder, or of a hub id; runs no code that comes with it. Raises ValueError naming it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"tokenizer {path}: cannot be loaded ({(str(error).splitlines() or ['?'])[0]}).") from None


def tokenizer_beside(experience: Path) -> Path | None:
    """The folder of the tokenizer beside an `experience` folder; None without one."""
    root = experience.resolve().parent
    return next((root / name for name in BESIDE if (root / name).is_dir()), None)


def decoder(path: str | Path) -> Callable[[Sequence[int]], str]:
    """Text of token ids without special tokens, by the tokenizer in a folder."""
    tokenizer = load_tokenizer(path)
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)
