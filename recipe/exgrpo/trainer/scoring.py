"""Scoring candidate trajectories under the current policy: one call per step to the training engine (section 4.1).

The driver lays the candidates out so that little is wasted (sorted by length, spread over data-parallel ranks, padded to a
multiple of them); the worker side (`recipe.exgrpo.trainer.worker`) runs the forward pass and returns one mean per trajectory.
"""

from dataclasses import dataclass

import numpy as np
import torch
from tensordict import TensorDict
from torch.nn.utils.rnn import pad_sequence
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import response_from_nested

from recipe.exgrpo.core.buffer import Trajectory
from recipe.exgrpo.core.selection import Scores, headroom, token_means
from recipe.exgrpo.trainer.rows import nested


@dataclass(frozen=True)
class Candidate:
    """A stored trajectory and the prompt it answers (token ids, integers [P])."""

    prompt: torch.Tensor | np.ndarray
    trajectory: Trajectory

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.trajectory.token_ids)


@dataclass(frozen=True)
class ForwardBudget:
    """How the engine is to be run: rollout temperature, tokens per device and pass, and whether it packs sequences."""

    temperature: float
    max_tokens: int
    packed: bool


def layout(lengths: np.ndarray, ranks: int, rows_per_pass: int = 1) -> np.ndarray:
    """Order in which to send rows: int64 [m], m >= n a multiple of ranks * rows_per_pass.

    Rows are sorted by length, longest first, and dealt out over the ranks' consecutive blocks, so that ranks carry equal
    work and rows of one pass are alike in length. Missing rows repeat the shortest.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    missing = -len(order) % (ranks * rows_per_pass)
    order = np.concatenate([order, np.repeat(order[-1:], missing)])
    return order.reshape(-1, ranks).T.reshape(-1)


def candidate_batch(candidates: list[Candidate]) -> TensorDict:
    """Unpadded rows for the engine: `input_ids, position_ids, loss_mask, prompts, responses, response_mask, behaviour`."""
    responses = [torch.as_tensor(c.trajectory.token_ids, dtype=torch.int64) for c in candidates]
    prompts = [torch.as_tensor(c.prompt, dtype=torch.int64) for c in candidates]
    ids = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    masks = [torch.as_tensor(c.trajectory.mask, dtype=torch.int64) for c in candidates]
    columns = {
        "input_ids": ids,
        "position_ids": [torch.arange(len(row)) for row in ids],
        "loss_mask": masks,
        "prompts": prompts,
        "responses": responses,
        "response_mask": masks,
        "behaviour": [torch.as_tensor(c.trajectory.log_probs, dtype=torch.float32) for c in candidates],
    }
    return TensorDict({name: nested(rows) for name, rows in columns.items()}, batch_size=len(candidates))


def trajectory_means(output: TensorDict, batch: TensorDict) -> TensorDict:
    """Worker side: `token_means` of each row (float64 [n]) over the model's own tokens, from the engine's output."""
    mask = batch["response_mask"]
    columns = [response_from_nested(output[name], mask).unbind() for name in ("log_probs", "entropy")]
    columns += [batch["behaviour"].unbind(), mask.unbind()]
    # Padded here and not by `to_padded_tensor`: a jagged tensor that came through Ray may pad to a stale width.
    padded = [pad_sequence(rows, batch_first=True) for rows in columns]
    return TensorDict(token_means(*padded), batch_size=len(batch))


def padded_log_probs(output: TensorDict, batch: TensorDict) -> TensorDict:
    """Worker side: `log_probs` float32 [n, width] of the response tokens, zero behind each row's end."""
    width = int(tu.get_non_tensor_data(batch, "width", default=0))
    rows = response_from_nested(output["log_probs"], batch["response_mask"]).unbind()
    dense = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        dense[i, : len(row)] = row
    return TensorDict({"log_probs": dense}, batch_size=len(rows))


def score_candidates(
    worker_group, candidates: list[Candidate], ranks: int, budget: ForwardBudget
) -> tuple[Scores, float]:
    """Scores of `candidates`, in their order, and the waste: tokens forwarded (padding included) over real tokens.

    One RPC. A packed engine fills passes up to the token budget itself; a padding engine gets passes of equal row count.
    """
    batch, first = laid_out(candidates, ranks, budget)
    output = worker_group.score_candidates(batch)
    means = {name: output[name].numpy()[first] for name in ("entropy", "nll", "probability", "drift")}
    advantages = np.array([candidate.trajectory.provenance.advantage for candidate in candidates])
    scores = Scores(means["entropy"], means["nll"], headroom(means["probability"], advantages), means["drift"])
    return scores, float(output["tokens_forwarded"].sum()) / sum(candidate.length for candidate in candidates)


def behaviour_log_probs(
    worker_group, candidates: list[Candidate], ranks: int, budget: ForwardBudget
) -> list[np.ndarray]:
    """Log-probs of `candidates` under the current weights, float32 [L] of each response, in their order. One RPC."""
    batch, first = laid_out(candidates, ranks, budget, calculate_entropy=False)
    tu.assign_non_tensor(batch, width=max(len(candidate.trajectory.token_ids) for candidate in candidates))
    found = worker_group.behaviour_log_probs(batch)["log_probs"].numpy()[first]
    return [row[: len(one.trajectory.token_ids)] for row, one in zip(found, candidates, strict=True)]


def laid_out(
    candidates: list[Candidate], ranks: int, budget: ForwardBudget, calculate_entropy: bool = True
) -> tuple[TensorDict, np.ndarray]:
    """The rows of one call with how the engine is to be run, and where in it each candidate stands, int64 [n]."""
    lengths = np.array([candidate.length for candidate in candidates])
    max_tokens = max(budget.max_tokens, int(lengths.max()))
    share = -(-len(candidates) // ranks)
    rows_per_pass = 1 if budget.packed else min(share, max(1, max_tokens // int(lengths.max())))
    order = layout(lengths, ranks, rows_per_pass)
    batch = candidate_batch([candidates[i] for i in order])
    tu.assign_non_tensor(
        batch,
        temperature=budget.temperature,
        calculate_entropy=calculate_entropy,
        compute_loss=False,
        use_dynamic_bsz=budget.packed,
        max_token_len_per_gpu=max_tokens,
        micro_batch_size_per_gpu=rows_per_pass,
    )
    first = np.full(len(candidates), -1)
    first[order[::-1]] = np.arange(len(order))[::-1]
    return batch, first
