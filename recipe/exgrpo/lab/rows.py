"""A step's sequences, the tensors made of them, and the loss over those tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from recipe.exgrpo.core.config import LossConfig
from recipe.exgrpo.core.loss import ClipRange, mixed_policy_loss
from recipe.exgrpo.lab.model import prompt_ids, response_ids


@dataclass
class Row:
    """One sequence of a step's batch.

    `prompt` and `response` are token ids; `behaviour` float32 [L] log-probs of the policy that the loss divides by, and
    `entropies` float32 [L] those of pi_old, nats; `own` bool [L] the tokens that are the model's (None: all); `advantage` one
    number, or float [own tokens]; `in_update` false keeps the row in the normaliser and out of every loss term.
    """

    question: str
    prompt: Sequence[int]
    response: Sequence[int]
    reward: float
    is_replayed: bool = False
    behaviour: np.ndarray | None = None
    advantage: float | np.ndarray = 0.0
    in_update: bool = True
    own: np.ndarray | None = None
    entropies: np.ndarray | None = None

    @property
    def own_places(self) -> np.ndarray:
        """Places of the model's own tokens in the response, int64."""
        return np.arange(len(self.response)) if self.own is None else np.flatnonzero(self.own)


@dataclass(frozen=True)
class Tensors:
    """Rows as tensors: ids int64 [n, P] and [n, L], mask, behaviour and advantages [n, L], the rest [n]."""

    prompts: torch.Tensor
    responses: torch.Tensor
    mask: torch.Tensor
    behaviour: torch.Tensor
    advantages: torch.Tensor
    is_replayed: torch.Tensor


def tensors_of(rows: Sequence[Row], columns: int) -> Tensors:
    """Padded tensors of `rows`, prompts `columns` wide; the mask has own tokens, none on rows out of the update."""
    responses = response_ids([row.response for row in rows])
    lengths = torch.tensor([len(row.response) * row.in_update for row in rows])
    mask = torch.arange(responses.shape[1]) < lengths.unsqueeze(1)
    behaviour, advantages = torch.zeros(responses.shape), torch.zeros(responses.shape)
    for i, row in enumerate(rows):
        behaviour[i, : len(row.behaviour)] = torch.as_tensor(row.behaviour)
        advantages[i, row.own_places] = torch.as_tensor(row.advantage, dtype=torch.float32)
        if row.own is not None:
            mask[i, : len(row.own)] &= torch.as_tensor(row.own, dtype=torch.bool)
    return Tensors(
        prompts=prompt_ids([row.prompt for row in rows], columns),
        responses=responses,
        mask=mask,
        behaviour=behaviour,
        advantages=advantages,
        is_replayed=torch.tensor([row.is_replayed for row in rows]),
    )


@dataclass(frozen=True)
class Objective:
    """What the loss needs besides rows. `sequences`: what sums over sequences are divided by, those of the step's batch by the
    number of its mini-batches; `horizon`: the constant length (both as in verl's `seq-mean-token-sum-norm`, so that a row out
    of the update still counts)."""

    loss: LossConfig
    clip: ClipRange
    entropy_coeff: float
    sequences: float
    horizon: int
    replay_active: bool


def batch_loss(
    log_probs: torch.Tensor, entropies: torch.Tensor, data: Tensors, objective: Objective
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mixed-policy loss minus the entropy bonus (Eq. 4), scalar, and its two terms.

    log_probs, entropies: float [n, L] of the response tokens under the current policy.
    """
    token_loss = mixed_policy_loss(
        log_probs,
        data.behaviour,
        data.advantages,
        data.is_replayed,
        objective.loss,
        objective.clip,
        objective.replay_active,
    )
    scale = objective.sequences * objective.horizon
    policy, entropy = (torch.where(data.mask, term, 0.0).sum() / scale for term in (token_loss, entropies))
    return policy - objective.entropy_coeff * entropy, {"pg_loss": policy.item(), "entropy_loss": entropy.item()}
