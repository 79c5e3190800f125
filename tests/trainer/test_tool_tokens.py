"""Tokens that a tool wrote: whatever stands there, loss, gradient and scores are those of the model's own tokens, in float64.

Ragged rows as verl's engine has them without padding, whole or in micro-batches over ranks.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.config import ActorConfig

from recipe.exgrpo.core.buffer import ExperienceBuffer, Response, Trajectory
from recipe.exgrpo.core.config import LossConfig
from recipe.exgrpo.trainer.objective import exgrpo_loss, replay_metrics
from recipe.exgrpo.trainer.rows import FLAG, IN_UPDATE, nested
from recipe.exgrpo.trainer.scoring import Candidate, candidate_batch, layout, trajectory_means

pytestmark = pytest.mark.verl

# Own turns (1) and tools' answers (0) of ragged responses; the third has no tool turn, the last two of them.
MASKS = ["110001", "1011", "111", "1", "10010001", "1100111"]
PROMPTS = [2, 5, 1, 3, 2, 4]
REPLAYED = [1, 4]
HORIZON = 16


def masks() -> list[torch.Tensor]:
    return [torch.tensor([int(c) for c in mask]) for mask in MASKS]


def mini_batch(seed: int = 0) -> TensorDict:
    """A mini-batch out of the queue; the loss sees what is at tool tokens in every one of its float columns."""
    g = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(9, (n,), generator=g) for n in PROMPTS]
    responses = [torch.randint(9, (len(mask),), generator=g) for mask in MASKS]
    columns = {
        "prompts": prompts,
        "responses": responses,
        "input_ids": [torch.cat(pair) for pair in zip(prompts, responses, strict=True)],
        "response_mask": masks(),
        "loss_mask": masks(),
    }
    for name in ("old_log_probs", "ref_log_prob", "advantages"):
        columns[name] = [-torch.rand(len(mask), generator=g, dtype=torch.float64) for mask in MASKS]
    columns["rollout_is_weights"] = [torch.rand(len(mask), generator=g, dtype=torch.float64) for mask in MASKS]
    data = TensorDict({name: nested(rows) for name, rows in columns.items()}, batch_size=len(MASKS))
    data[FLAG] = torch.tensor([float(i in REPLAYED) for i in range(len(MASKS))])
    data[IN_UPDATE] = torch.ones(len(MASKS))
    return totals(data, 1, sum(mask.sum().item() for mask in masks()))


def totals(data: TensorDict, ranks: int, tokens: int) -> TensorDict:
    tu.assign_non_tensor(data, dp_size=ranks, batch_num_tokens=tokens, global_batch_size=len(MASKS))
    return data


def outputs(seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """What an engine computes of each row, prompt included."""
    g = torch.Generator().manual_seed(seed)
    sizes = [p + len(mask) for p, mask in zip(PROMPTS, MASKS, strict=True)]
    return [
        {
            name: sign * torch.rand(n, generator=g, dtype=torch.float64)
            for name, sign in (("log_probs", -1), ("entropy", 1))
        }
        for n in sizes
    ]


def at_tools(row: int) -> torch.Tensor:
    """Positions in an engine's output that predict a tool's tokens, bool [P + L]: one before each."""
    own = masks()[row].bool()
    return torch.cat([torch.zeros(PROMPTS[row] - 1, dtype=torch.bool), ~own, torch.zeros(1, dtype=torch.bool)])


def run(data: TensorDict, rows: list[dict[str, torch.Tensor]], mode: str, shaping: str, places=None):
    """(loss, gradients with respect to each row's outputs, metrics) of a micro-batch of the rows at `places`."""
    places = list(range(len(MASKS))) if places is None else places
    settings = {"loss_agg_mode": mode, "loss_scale_factor": HORIZON if mode.endswith("norm") else None}
    config = ActorConfig(
        strategy="fsdp2", rollout_n=4, use_dynamic_bsz=True, entropy_coeff=0.01, use_kl_loss=True, kl_loss_coef=0.1,
        kl_loss_type="low_var_kl", **settings,
    )  # fmt: skip
    leaves = [{name: values.clone().requires_grad_() for name, values in rows[i].items()} for i in places]
    output = {name: nested([leaf[name] for leaf in leaves]) for name in ("log_probs", "entropy")}
    part = tu.index_select_tensor_dict(data, places)
    loss, metrics = exgrpo_loss(config, LossConfig(shaping=shaping), output, part)
    inputs = [leaf[name] for leaf in leaves for name in ("log_probs", "entropy")]
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]
    return loss.detach(), dict(zip(places, zip(grads[::2], grads[1::2], strict=True), strict=True)), metrics


MODES = pytest.mark.parametrize("mode", ["seq-mean-token-sum-norm", "token-mean", "seq-mean-token-mean"])


@MODES
@pytest.mark.parametrize("shaping", ["policy", "none", "clip"])
def test_nothing_at_a_tools_tokens_moves_loss_gradient_or_metrics(mode, shaping):
    data, rows = mini_batch(), outputs()
    loss, gradients, metrics = run(data, rows, mode, shaping)
    g = torch.Generator().manual_seed(5)
    dirty, changed = data.clone(), [dict(row) for row in rows]
    for name in ("old_log_probs", "ref_log_prob", "advantages", "rollout_is_weights"):
        dirty[name] = nested([
            torch.where(mask.bool(), row, -9 * torch.rand(len(row), generator=g, dtype=row.dtype))
            for row, mask in zip(data[name].unbind(), masks(), strict=True)
        ])  # fmt: skip
    for i, row in enumerate(changed):
        for name, values in row.items():
            row[name] = torch.where(at_tools(i), -9 * torch.rand(len(values), generator=g, dtype=values.dtype), values)
    assert any(not torch.equal(a["log_probs"], b["log_probs"]) for a, b in zip(rows, changed, strict=True))
    again, same, same_metrics = run(dirty, changed, mode, shaping)
    assert torch.equal(loss, again)
    for i, pair in gradients.items():
        assert all(map(torch.equal, pair, same[i]))
        assert not any(gradient[at_tools(i)].any() for gradient in pair)
        assert pair[0].abs().sum() > 0
    read = lambda found: {name: metric.aggregate() for name, metric in found.items()}  # noqa: E731
    assert read(metrics) == read(same_metrics)
    own = [int(mask.sum()) for mask in masks()]
    assert metrics["sums/replay_tokens"].aggregate() == sum(own[i] for i in REPLAYED)
    assert metrics["sums/fresh_tokens"].aggregate() == sum(own) - sum(own[i] for i in REPLAYED)


@MODES
@pytest.mark.parametrize(
    "ranks", [[[[0, 1, 2, 3, 4, 5]]], [[[0, 3], [1], [5, 2, 4]]], [[[4, 1], [0]], [[2], [5, 3]]]], ids=["1", "3", "2x2"]
)
def test_micro_batches_and_ranks_add_up(mode, ranks):
    """Gradients are averaged over ranks, and summed over the micro-batches of each."""
    rows, tokens = outputs(), sum(mask.sum().item() for mask in masks())
    _, expected, whole = run(mini_batch(), rows, mode, "policy")
    found, sums = {}, {}
    for parts in ranks:
        for places in parts:
            _, gradients, metrics = run(totals(mini_batch(), len(ranks), tokens), rows, mode, "policy", places)
            found |= {i: [g / len(ranks) for g in pair] for i, pair in gradients.items()}
            for name, metric in metrics.items():
                if name.startswith("sums/"):
                    sums[f"actor/{name}"] = sums.get(f"actor/{name}", 0.0) + metric.aggregate()
    for i, pair in expected.items():
        torch.testing.assert_close(tuple(found[i]), pair, rtol=1e-12, atol=1e-15)
    alone = {f"actor/{name}": metric.aggregate() for name, metric in whole.items() if name.startswith("sums/")}
    assert replay_metrics(sums) == pytest.approx(replay_metrics(alone))


# ---- scores


def trajectory(row: int) -> Trajectory:
    g = np.random.default_rng(row)
    mask = np.array([c == "1" for c in MASKS[row]])
    log_probs = np.where(mask, -g.random(len(mask)), 0).astype(np.float32)
    return Trajectory(row, f"q{row}", g.integers(0, 9, len(mask)).astype(np.int32), log_probs, mask, 1.0, 0)


def candidates() -> list[Candidate]:
    return [Candidate(np.arange(1, 1 + n), trajectory(i)) for i, n in enumerate(PROMPTS)]


def scores_of(rows: list[dict[str, torch.Tensor]], places, found=None) -> TensorDict:
    batch = candidate_batch([(found or candidates())[i] for i in places])
    return trajectory_means(
        TensorDict({name: nested([rows[i][name] for i in places]) for name in ("log_probs", "entropy")}, len(places)),
        batch,
    )


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_scores_are_means_over_own_tokens(ranks):
    rows = outputs()
    order = layout(np.array([one.length for one in candidates()]), ranks)
    for places in np.split(order, ranks):
        found = scores_of(rows, places.tolist())
        for at, i in enumerate(places.tolist()):
            own, start = masks()[i].bool(), PROMPTS[i] - 1
            log_probs, entropy = (rows[i][name][start:-1][own] for name in ("log_probs", "entropy"))
            past = torch.from_numpy(trajectory(i).log_probs).double()[own]
            expected = {
                "nll": -log_probs.mean(), "entropy": entropy.mean(), "probability": log_probs.exp().mean(),
                "drift": ((log_probs - past) ** 2).mean(),
            }  # fmt: skip
            for name, value in expected.items():
                torch.testing.assert_close(found[name][at], value, rtol=1e-12, atol=0)


def test_nothing_at_a_tools_tokens_moves_a_score():
    rows, places = outputs(), list(range(len(MASKS)))
    dirty = [
        {name: torch.where(at_tools(i), -99.0, values) for name, values in row.items()} for i, row in enumerate(rows)
    ]
    stained = [
        replace(
            one,
            trajectory=replace(one.trajectory, log_probs=np.where(one.trajectory.mask, one.trajectory.log_probs, -9)),
        )
        for one in candidates()
    ]
    before, after = scores_of(rows, places), scores_of(dirty, places, stained)
    assert all(torch.equal(before[name], after[name]) for name in before.keys())  # noqa: SIM118 - a TensorDict
    assert len(set(before["nll"].tolist())) == len(MASKS)


# ---- lengths, and responses without a tool's turn


def test_lengths_and_budgets_count_all_tokens():
    one = Candidate(np.arange(5), trajectory(4))
    assert one.length == 5 + len(MASKS[4])
    buffer = ExperienceBuffer(4)
    buffer.add("q", Response(one.trajectory.token_ids, one.trajectory.log_probs, one.trajectory.mask), 1.0, 1)
    assert buffer.candidates().length.tolist() == [len(MASKS[4])]
    assert (one.trajectory.turns, one.trajectory.tool_tokens) == (6, 5)


def test_a_mask_of_ones_is_no_mask_bit_for_bit():
    states, batches = [], []
    ids, log_probs = np.arange(4), np.array([-0.5, -1.0, -0.25, -2.0], np.float32)
    for mask in (None, np.ones(4, bool)):
        buffer = ExperienceBuffer(4)
        buffer.record("q", 2)
        assert buffer.add("q", Response(ids, log_probs, mask, [7, 8]), 1.0, 3, keep_prompt=True)
        assert not buffer.add("q", Response(ids, log_probs, None if mask is not None else np.ones(4, bool)), 1.0, 3)
        states.append(buffer.state())
        batches.append(candidate_batch([Candidate(np.array([7, 8]), buffer.trajectory(buffer.rows("q")[0]))]))
    (first, meta), (second, same) = states
    assert meta == same
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    for name in batches[0].keys():  # noqa: SIM118 - a TensorDict
        assert torch.equal(batches[0][name].values(), batches[1][name].values())


def test_the_same_words_of_a_tool_and_of_the_model_are_two_responses():
    buffer = ExperienceBuffer(4)
    for mask in (None, [True, False, True], [True, True, False]):
        assert buffer.add("q", Response([1, 2, 3], [-1.0, -1.0, -1.0], mask), 1.0, 0)
        assert not buffer.add("q", Response([1, 2, 3], [-1.0, -1.0, -1.0], mask), 1.0, 0)
    assert len(set(buffer.state()[0]["row_digest"].tolist())) == 3
