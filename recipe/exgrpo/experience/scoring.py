"""Log-probs of given responses under a model of transformers: those of the start policy, for traces that come without.

The trainer asks its own actor instead (`trainer.warm_start`): the same numbers, on the GPUs of the run.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from recipe.exgrpo.experience.importing import Score

STEPS = 512  # positions whose float32 logits are in memory at once
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ModelScorer:
    """Scores with a causal language model, `max_tokens` positions (padding included) in a forward pass.

    `temperature` divides the logits, as in the training engine; the log-softmax is float32 whatever the model's dtype.
    """

    def __init__(self, model, temperature: float = 1.0, max_tokens: int = 4096) -> None:
        self.model, self.temperature, self.max_tokens = model.eval(), temperature, max_tokens

    @classmethod
    def load(cls, path: str, temperature: float, dtype: str = "float32", max_tokens: int = 4096) -> "ModelScorer":
        """The model in a folder, or of a hub id, on a GPU where there is one. Raises ValueError naming it."""
        from transformers import AutoModelForCausalLM

        try:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"model {path}: cannot be loaded ({(str(error).splitlines() or ['?'])[0]}).") from None
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu"), temperature, max_tokens)

    def __call__(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """Log-probs float32 [L] of each (prompt ids, response ids), in their order."""
        found: list[np.ndarray] = [np.empty(0, np.float32)] * len(pairs)
        for places in passes([len(prompt) + len(ids) for prompt, ids in pairs], self.max_tokens):
            for place, values in zip(places, self._pass([pairs[i] for i in places]), strict=True):
                found[place] = values
        return found

    @torch.no_grad()
    def _pass(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        rows = [torch.from_numpy(np.concatenate(pair).astype(np.int64)) for pair in pairs]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.model.device)
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
        logits = self.model(ids, attention_mask=mask.long()).logits
        return [
            token_log_probs(logits[i], ids[i], len(prompt), len(response), self.temperature)
            for i, (prompt, response) in enumerate(pairs)
        ]


def token_log_probs(
    logits: torch.Tensor, ids: torch.Tensor, prompt: int, length: int, temperature: float
) -> np.ndarray:
    """Log-probs float32 [length] of a response after `prompt` tokens; `logits` [T, V] and `ids` [T] of the sequence."""
    parts = [
        (steps.float() / temperature).log_softmax(-1).gather(1, chosen.unsqueeze(1)).squeeze(1)
        for steps, chosen in zip(
            logits[prompt - 1 : prompt + length - 1].split(STEPS),
            ids[prompt : prompt + length].split(STEPS),
            strict=True,
        )
    ]
    return torch.cat(parts).cpu().numpy()


def passes(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Positions in forward passes, longest first: at most `max_tokens` positions with padding, or one sequence."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if found and (len(found[-1]) + 1) * lengths[found[-1][0]] <= max_tokens:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def with_progress(score: Score, advance: Callable[[int], None], chunk: int = 16) -> Score:
    """The same, `chunk` at a time, with `advance` told after each."""

    def scored(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        found = []
        for i in range(0, len(pairs), chunk):
            found += score(pairs[i : i + chunk])
            advance(len(pairs[i : i + chunk]))
        return found

    return scored
