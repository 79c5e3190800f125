"""Candidate scoring through verl's own padding, packing and micro-batching, against one unpadded forward pass a row."""

import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.torch_functional import entropy_from_logits
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine.utils import postprocess_batch_func, prepare_micro_batches

from recipe.exgrpo.core.buffer import Provenance, Trajectory
from recipe.exgrpo.core.selection import Scores
from recipe.exgrpo.trainer.scoring import Candidate, ForwardBudget, layout, score_candidates
from recipe.exgrpo.trainer.worker import ExGRPOWorker

pytestmark = pytest.mark.verl

VOCABULARY = 19


class TinyLM(torch.nn.Module):
    """A recurrent language model that takes padded rows, or rows packed one after the other as verl packs them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(VOCABULARY, 8)
        self.recurrence = torch.nn.GRU(8, 16, batch_first=True)
        self.head = torch.nn.Linear(16, VOCABULARY)
        with torch.no_grad():
            self.head.weight *= 6
        self.passes = []

    def forward(self, *, input_ids, position_ids, attention_mask=None, use_cache=False):
        self.passes.append(tuple(input_ids.shape))
        if attention_mask is None:
            starts = (position_ids[0] == 0).nonzero().squeeze(1).tolist()
            rows = input_ids[0].tensor_split(starts[1:])
            return SimpleNamespace(logits=torch.cat([self.logits(row[None]) for row in rows], dim=1))
        return SimpleNamespace(logits=self.logits(input_ids))

    def logits(self, ids):
        return self.head(self.recurrence(self.embedding(ids))[0])


class Rank:
    """One data-parallel rank: ExGRPO's worker method over verl's engine, whose module is a tiny model."""

    def __init__(self, model, packed):
        engine = object.__new__(FSDPEngineWithLMHead)  # its constructor wants a process group and a model folder
        engine.module, engine.use_ulysses_sp, engine.pad_to_length = model, False, False
        engine.engine_config = SimpleNamespace(
            entropy_checkpointing=False, entropy_from_logits_with_chunking=False, use_fused_kernels=False
        )
        engine.compute_entropy_from_logits = entropy_from_logits
        self.packed = packed
        self.actor = SimpleNamespace(engine=engine, infer_batch=self.infer_batch)

    def infer_batch(self, data):
        engine, outputs = self.actor.engine, []
        tu.assign_non_tensor(data, use_remove_padding=self.packed, sp_size=1)
        micro_batches, indices = prepare_micro_batches(data)
        for micro in micro_batches:
            inputs, args = engine.prepare_model_inputs(micro)
            with torch.no_grad():
                raw = engine.module(**inputs, use_cache=False)
            outputs.append({"model_output": engine.prepare_model_outputs(raw, args, micro, None)})
        return tu.get_tensordict(postprocess_batch_func(outputs, indices, data)["model_output"])


class WorkerGroup:
    """Ranks behind verl's dispatch: consecutive blocks of rows, pickled on the way."""

    def __init__(self, ranks, packed):
        self.model = TinyLM()
        self.ranks = [Rank(self.model, packed) for _ in range(ranks)]
        self.calls = []

    def score_candidates(self, batch: TensorDict) -> TensorDict:
        self.calls.append(batch)
        blocks = [pickle.loads(pickle.dumps(block)) for block in tu.chunk_tensordict(batch, len(self.ranks))]
        return torch.cat(
            [ExGRPOWorker.score_candidates(rank, block) for rank, block in zip(self.ranks, blocks, strict=True)]
        )


def candidates(lengths, seed=0, unwritten=0.0) -> list[Candidate]:
    """Candidates of (prompt, response) lengths; the model did not write a share `unwritten` of the responses' tokens."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for row, (prompt, response) in enumerate(lengths):
        ids = torch.randint(VOCABULARY, (response,), generator=g).numpy().astype(np.int32)
        mask = torch.rand(response, generator=torch.Generator().manual_seed(row)).numpy() >= unwritten
        mask[-1] = True
        past = -np.random.default_rng(row).random(response).astype(np.float32) * mask
        advantage = Provenance(advantage=(0.5, -0.25, 0.0)[row % 3])
        stored = Trajectory(row, "q", ids, past, mask, 1.0, 0, provenance=advantage)
        found.append(Candidate(torch.randint(VOCABULARY, (prompt,), generator=g), stored))
    return found


def oracle(model, candidate, temperature):
    """Entropy, likelihood, headroom and drift of the model's own tokens, from one pass over the unpadded sequence."""
    response = torch.as_tensor(candidate.trajectory.token_ids, dtype=torch.int64)
    with torch.no_grad():
        logits = model.logits(torch.cat([candidate.prompt, response])[None])[0].double() / temperature
    log_p = logits[len(candidate.prompt) - 1 : -1].log_softmax(-1)
    own = torch.as_tensor(candidate.trajectory.mask)
    entropy = -(log_p.exp() * log_p).sum(-1)[own].mean()
    found, advantage = log_p[torch.arange(len(response)), response][own], candidate.trajectory.provenance.advantage
    room = {1: 1 - found.exp(), -1: found.exp(), 0: 0 * found}[int(np.sign(advantage))]
    moved = found - torch.as_tensor(candidate.trajectory.log_probs).double()[own]
    return float(entropy), float(-found.mean()), float(room.mean()), float((moved**2).mean())


def compare(scores: Scores, expected: np.ndarray) -> None:
    for i, name in enumerate(("entropy", "nll", "headroom", "drift")):
        np.testing.assert_allclose(getattr(scores, name), expected[:, i], rtol=1e-5, err_msg=name)
        assert getattr(scores, name).dtype == np.float64
    assert len(set(expected[:, 2])) > 2  # advantages of all signs


RAGGED = [(3, 4), (1, 9), (5, 1), (2, 2), (7, 3), (4, 8), (1, 1), (6, 5), (2, 6), (3, 3), (8, 7)]
BUDGETS = {"one pass": 10_000, "many passes": 24, "less than a row": 5}


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("max_tokens", BUDGETS.values(), ids=BUDGETS)
def test_scores_equal_the_unpadded_oracle_in_the_order_of_the_candidates(packed, ranks, max_tokens):
    group, rows = WorkerGroup(ranks, packed), candidates(RAGGED)
    scores, _ = score_candidates(group, rows, ranks, ForwardBudget(0.7, max_tokens, packed))
    expected = np.array([oracle(group.model, row, 0.7) for row in rows])
    assert isinstance(scores, Scores)
    compare(scores, expected)
    assert len(group.calls) == 1


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_tokens_that_the_model_did_not_write_are_read_and_not_scored(packed):
    group, rows = WorkerGroup(2, packed), candidates(RAGGED, unwritten=0.4)
    scores, _ = score_candidates(group, rows, 2, ForwardBudget(0.7, 24, packed))
    expected = np.array([oracle(group.model, row, 0.7) for row in rows])
    compare(scores, expected)
    whole, _ = score_candidates(group, candidates(RAGGED), 2, ForwardBudget(0.7, 24, packed))
    differ = [not row.trajectory.mask.all() for row in rows]
    assert (abs(whole.entropy - scores.entropy) > 1e-6).tolist() == differ
    assert any(differ)


def test_a_prompt_may_come_from_the_store():
    rows = candidates(RAGGED[:3])
    stored = [Candidate(row.prompt.numpy().astype(np.int32), row.trajectory) for row in rows]
    found = [
        score_candidates(WorkerGroup(1, True), these, 1, ForwardBudget(1.0, 64, True))[0] for these in (rows, stored)
    ]
    np.testing.assert_array_equal(found[0].entropy, found[1].entropy)


def test_the_candidates_of_these_tests_differ():
    model = TinyLM()
    entropies = sorted(oracle(model, row, 0.7)[0] for row in candidates(RAGGED))
    assert min(np.diff(entropies)) > 1e-3
    assert oracle(model, candidates(RAGGED)[0], 1.0) != oracle(model, candidates(RAGGED)[0], 0.7)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_single_candidate(packed, ranks):
    group, rows = WorkerGroup(ranks, packed), candidates([(2, 1)])
    scores, waste = score_candidates(group, rows, ranks, ForwardBudget(1.0, 100, packed))
    found = [scores.entropy[0], scores.nll[0], scores.headroom[0], scores.drift[0]]
    np.testing.assert_allclose(found, oracle(group.model, rows[0], 1.0), rtol=1e-5)
    assert waste == pytest.approx(ranks)  # the same row on every rank


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize(("ranks", "max_tokens"), [(1, 10_000), (1, 24), (2, 24), (3, 40)])
def test_waste_is_tokens_forwarded_over_real_tokens(packed, ranks, max_tokens):
    group, rows = WorkerGroup(ranks, packed), candidates(RAGGED)
    _, waste = score_candidates(group, rows, ranks, ForwardBudget(1.0, max_tokens, packed))
    real = sum(p + r for p, r in RAGGED)
    assert waste == pytest.approx(sum(n * width for n, width in group.model.passes) / real)
    if packed:  # nothing but the rows repeated to fill the ranks, which are the shortest
        shortest = min(p + r for p, r in RAGGED)
        assert waste == pytest.approx(1 + (-len(RAGGED) % ranks) * shortest / real)


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "passes"),
    [
        ([4, 2, 4, 2], 8, [(2, 4), (2, 2)]),
        ([5, 2], 100, [(2, 5)]),
        ([2, 9, 2, 2], 9, [(1, 9), (1, 2), (1, 2), (1, 2)]),
        ([6, 2, 2, 2, 5], 12, [(2, 6), (2, 2), (2, 2)]),  # the third pass repeats the shortest
    ],
)
def test_a_padding_engine_gets_rows_of_like_length_within_the_budget(lengths, max_tokens, passes):
    group = WorkerGroup(1, packed=False)
    rows = candidates([(1, n - 1) for n in lengths])
    _, waste = score_candidates(group, rows, 1, ForwardBudget(1.0, max_tokens, False))
    assert group.model.passes == passes
    assert waste == pytest.approx(sum(n * width for n, width in passes) / sum(lengths))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_no_pass_exceeds_the_token_budget(packed, ranks):
    group, rows = WorkerGroup(ranks, packed), candidates(RAGGED * 2)
    score_candidates(group, rows, ranks, ForwardBudget(1.0, 40, packed))
    assert max(n * width for n, width in group.model.passes) <= 40
    assert len(group.model.passes) > ranks


# ---- layout

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, ranks=st.integers(1, 5), rows_per_pass=st.integers(1, 4))
def test_layout_sends_every_row_and_repeats_only_the_shortest(lengths, ranks, rows_per_pass):
    order = layout(np.array(lengths), ranks, rows_per_pass)
    multiple = ranks * rows_per_pass
    assert len(order) == math.ceil(len(lengths) / multiple) * multiple
    times = np.bincount(order, minlength=len(lengths))
    assert times.min() >= 1
    repeated = np.flatnonzero(times > 1)
    assert len(repeated) <= 1
    assert all(lengths[i] == min(lengths) for i in repeated)


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, ranks=st.integers(1, 5), rows_per_pass=st.integers(1, 4))
def test_layout_balances_ranks_and_keeps_like_lengths_together(lengths, ranks, rows_per_pass):
    lengths = np.array(lengths)
    blocks = lengths[layout(lengths, ranks, rows_per_pass)].reshape(ranks, -1)
    assert (np.diff(blocks, axis=1) <= 0).all()  # each rank's rows from long to short
    # Row j of every rank is among the same `ranks` neighbours in length, so ranks differ by less than the longest row.
    assert (blocks[:, 1:].max(0) <= blocks[:, :-1].min(0)).all()
    assert np.ptp(blocks.sum(1)) <= lengths.max() - lengths.min()


def test_layout_keeps_the_order_of_equal_lengths():
    assert layout(np.array([3, 3, 3, 3]), 1).tolist() == [0, 1, 2, 3]
    assert layout(np.array([3, 3, 3, 3]), 2).tolist() == [0, 2, 1, 3]
