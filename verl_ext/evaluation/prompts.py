"""Prompts as token ids, rendered by the tokenizer's chat template exactly as verl renders them for a rollout."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_ext.evaluation import EvaluationError
from verl_ext.evaluation.questions import Benchmark

logger = logging.getLogger(__name__)
THINK = "<think>"


@dataclass(frozen=True)
class Prompts:
    """`ids[benchmark][question]` are token ids."""

    ids: dict[str, dict[str, list[int]]]

    @property
    def longest(self) -> int:
        return max(len(ids) for prompts in self.ids.values() for ids in prompts.values())

    def fingerprint(self) -> str:
        """SHA-256 over all token ids: another tokenizer or chat template is another evaluation."""
        return hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()

    def total(self, benchmarks: Sequence[Benchmark]) -> int:
        """Prompt tokens of one sample of every question, times its samples."""
        return sum(b.n_samples * sum(map(len, self.ids[b.name].values())) for b in benchmarks)


def tokenise(benchmarks: Sequence[Benchmark], folder: str | Path, arguments: Mapping[str, Any]) -> Prompts:
    """Render every prompt; `arguments` reach the chat template, such as {"enable_thinking": False}.

    Raises EvaluationError if the tokenizer does not load or has no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{folder}: the tokenizer cannot be loaded ({str(error).splitlines()[0]})") from None
    if not tokenizer.chat_template:
        raise EvaluationError(f"{folder}: the tokenizer has no chat template; make one with data/prepare_tokenizer.py")
    arguments = {**arguments, "add_generation_prompt": True, "tokenize": False}
    texts = {
        b.name: {q.key: tokenizer.apply_chat_template(list(q.prompt), **arguments) for q in b.questions}
        for b in benchmarks
    }
    _warn_about_thought(benchmarks, texts, folder)
    encoded = {
        name: tokenizer(list(t.values()), add_special_tokens=False, verbose=False)["input_ids"]
        for name, t in texts.items()
    }
    return Prompts({name: dict(zip(texts[name], ids, strict=True)) for name, ids in encoded.items()})


def _warn_about_thought(benchmarks: Sequence[Benchmark], texts: dict[str, dict[str, str]], folder: str | Path) -> None:
    """Prompts that ask for a thought must open it in the assistant's turn, or most responses will miss the format."""
    for benchmark in benchmarks:
        first = benchmark.questions[0]
        if first.extra_info.get("think_format") and THINK not in texts[benchmark.name][first.key][-2 * len(THINK) :]:
            logger.warning(
                "%s: the prompt asks for a thought, but the chat template of %s does not open it with %s; "
                "data/prepare_tokenizer.py makes a tokenizer that does (--tokenizer)", benchmark.name, folder, THINK
            )  # fmt: skip
