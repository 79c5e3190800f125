"""The gradient of one update by definition, in float64: one unpadded forward pass per row, Eq. 2 and Eq. 4 written out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class Row:
    """A row of an update; `past` holds its behaviour log-probs where it is a stored trajectory, `advantage` a frozen one,
    or one for each token of the response, float64 [L]."""

    prompt: list[int]
    response: list[int]
    reward: float
    past: torch.Tensor | None = None
    advantage: float | torch.Tensor | None = None
    mask: tuple[int, ...] | None = None  # 1 on the tokens that the model wrote; None: all of them

    @property
    def own(self) -> torch.Tensor:
        """Where its own tokens stand, bool [L]."""
        return torch.ones(len(self.response), dtype=torch.bool) if self.mask is None else torch.tensor(self.mask).bool()


@dataclass(frozen=True)
class Objective:
    """What the update's loss is; `clips_fresh` says whether fresh tokens are clipped in this step."""

    rows: int
    horizon: float
    beta: float = 0.1
    shaping: str = "policy"
    low: float = 0.2
    high: float = 0.2
    dual: float = 3.0
    entropy: float = 0.001
    temperature: float = 1.0
    clips_fresh: bool = True


class Float64:
    """A model in float64, at whatever weights it is given."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")

    def at(self, weights: dict[str, torch.Tensor]) -> "Float64":
        self.model.load_state_dict({name: value.double() for name, value in weights.items()}, strict=False)
        return self

    def tokens(self, row: Row, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies of the response's tokens, float64 [L] each."""
        ids = torch.tensor([row.prompt + row.response])
        logits = self.model(ids).logits[0, len(row.prompt) - 1 : -1].double() / temperature
        log_p = logits.log_softmax(-1)
        return log_p.gather(1, ids[0, len(row.prompt) :, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)

    @torch.no_grad()
    def log_probs(self, row: Row, temperature: float) -> torch.Tensor:
        return self.tokens(row, temperature)[0]

    @torch.no_grad()
    def mean_entropy(self, row: Row, temperature: float) -> float:
        return float(self.tokens(row, temperature)[1][row.own].mean())


@dataclass
class Found:
    """An update's gradient by parameter, and the ratios w of its tokens, detached: of fresh rows and of stored ones."""

    gradient: dict[str, torch.Tensor]
    fresh: torch.Tensor
    stored: torch.Tensor


def gradient(
    model: Float64, groups: Sequence[Sequence[Row]], old: dict[int, torch.Tensor], objective: Objective
) -> Found:
    """Of the loss over `groups`, each the rows of one question; `old` holds pi_old's log-probs by the row's identity."""
    total, ratios = torch.zeros((), dtype=torch.float64), {True: [], False: []}
    for group in groups:
        mean = sum(row.reward for row in group) / len(group)
        for row in group:
            log_probs, entropy = model.tokens(row, objective.temperature)
            stored = row.past is not None
            w = (log_probs - (row.past if stored else old[id(row)])).exp()
            advantage = torch.as_tensor(row.reward - mean if row.advantage is None else row.advantage).expand_as(w)
            terms = token_loss(w, advantage, stored, objective) - objective.entropy * entropy
            total = total + terms[row.own].sum()
            ratios[stored].append(w.detach()[row.own])
    model.model.zero_grad()
    (total / objective.horizon / objective.rows).backward()
    found = {name: p.grad.clone() for name, p in model.model.named_parameters() if p.grad is not None}
    none = [torch.empty(0, dtype=torch.float64)]
    return Found(found, torch.cat(none + ratios[False]), torch.cat(none + ratios[True]))


def token_loss(w: torch.Tensor, advantage: torch.Tensor, stored: bool, objective: Objective) -> torch.Tensor:
    """Eq. 4 per token [L]: f(w) = w / (w + beta) on stored rows, PPO's clip with its dual bound elsewhere."""
    if stored and objective.shaping == "policy":
        return -advantage * w / (w + objective.beta)
    if not stored and not objective.clips_fresh:
        return -advantage * w
    gain = torch.minimum(w * advantage, w.clamp(1 - objective.low, 1 + objective.high) * advantage)
    return -torch.where(advantage < 0, torch.maximum(gain, objective.dual * advantage), gain)
