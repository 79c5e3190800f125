"""LoRA through verl's engine: stored trajectories are scored under the adapter, and a merged checkpoint is what was trained."""

import json

import numpy as np
import pytest
import torch
from likelihoods import make_candidates, reference
from workers import group_of, local_worker

from recipe.exgrpo.trainer.scoring import ForwardBudget, score_candidates
from verl_ext.evaluation import EvaluationError
from verl_ext.evaluation.model import find_model, merged

pytestmark = pytest.mark.verl

TOY = "data/toy/model"
ALPHA = 32  # over the rank: a scale of 4, which no default gives
BUDGET = ForwardBudget(temperature=1.0, max_tokens=64, packed=True)


@pytest.fixture(scope="module")
def worker(compose):
    """A worker with an adapter of rank 8 that is not zero."""
    config = compose(
        "hardware=tiny",
        f"actor_rollout_ref.model.path={TOY}",
        "actor_rollout_ref.model.lora_rank=8",
        f"actor_rollout_ref.model.lora_alpha={ALPHA}",
    )
    torch.manual_seed(0)  # the adapter's other half is drawn at its start
    with local_worker(config) as found:
        with torch.no_grad():
            for name, weight in found.actor.engine.module.named_parameters():
                if "lora_B" in name:
                    weight.to_local().copy_(torch.randn(weight.shape) * 0.05)
        yield found


@pytest.fixture(scope="module")
def checkpoint(worker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "global_step_1"
    worker.save_checkpoint(str(folder / "actor"), global_step=1)
    return folder


@pytest.fixture(scope="module")
def candidates():
    return make_candidates()


def scored(worker, candidates) -> np.ndarray:
    return np.asarray(score_candidates(group_of(worker), candidates, 1, BUDGET)[0].nll)


def test_only_the_adapter_is_trained(worker):
    trained = {name for name, weight in worker.actor.engine.module.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    held = {id(w) for group in worker.actor.engine.optimizer.param_groups for w in group["params"] if w.requires_grad}
    assert len(held) == len(trained)


def test_scores_and_the_merged_checkpoint_are_the_adapted_model_and_not_the_base(
    worker, checkpoint, candidates, tmp_path
):
    """Scored in float32, merged in bfloat16 as verl's merger writes: rounding apart, one model."""
    (_, base), here = reference(TOY, candidates), scored(worker, candidates)
    whole = merged(find_model(str(checkpoint)), tmp_path)
    _, there = reference(whole, candidates)
    assert not (whole / "lora_adapter").exists()
    effect = np.abs(here - base)
    assert effect.mean() > 0.3
    assert np.abs(here - there).mean() < 0.05 * effect.mean()


def test_a_changed_alpha_is_another_model(checkpoint):
    meta = checkpoint / "actor" / "lora_train_meta.json"
    before, text = find_model(str(checkpoint)).fingerprint, meta.read_text()
    meta.write_text(json.dumps(json.loads(text) | {"lora_alpha": 16}))
    try:
        assert find_model(str(checkpoint)).fingerprint != before
    finally:
        meta.write_text(text)


def test_without_the_adapters_scale_nothing_is_measured(checkpoint, tmp_path):
    """verl's merger would write alpha 0, which is the base model."""
    meta = checkpoint / "actor" / "lora_train_meta.json"
    text = meta.read_text()
    meta.unlink()
    try:
        with pytest.raises(EvaluationError, match=r"lora_alpha is 0: .* scale cannot be told"):
            merged(find_model(str(checkpoint)), tmp_path)
    finally:
        meta.write_text(text)
    assert not (tmp_path / "merged_model").exists()


def test_a_checkpoint_of_the_adapter_alone_is_refused(checkpoint, tmp_path):
    """`save_lora_only`: verl's merger would write a model without weights, and transformers would draw some."""
    shard = checkpoint / "actor" / "model_world_size_1_rank_0.pt"
    whole = shard.read_bytes()
    state = torch.load(shard, weights_only=False)
    torch.save({name: weight for name, weight in state.items() if "lora_" in name}, shard)
    try:
        with pytest.raises(EvaluationError, match=r"no weights of its base model|merger failed"):
            merged(find_model(str(checkpoint)), tmp_path)
    finally:
        shard.write_bytes(whole)


def test_a_folder_with_the_adapter_beside_the_base_model_is_refused(tmp_path):
    (tmp_path / "lora_adapter").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EvaluationError, match="left the LoRA adapter beside the base model"):
        find_model(str(tmp_path))
