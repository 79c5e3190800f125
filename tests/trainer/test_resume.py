"""Planning through the real trainer, dataset and dataloader, without workers: the data cursor, retirement, resume."""

import json

import numpy as np
import pandas as pd
import pytest

from recipe.exgrpo.core.policies.replay import Group
from verl_ext.dataset import question_id

pytestmark = pytest.mark.verl

K, B = 4, 8
TOY = "data/toy/model"


@pytest.fixture
def make_trainer(tmp_path, compose):
    """make_trainer(questions, *overrides) -> an ExGRPOTrainer with its data loaded and no workers."""
    from recipe.exgrpo.trainer.trainer import ExGRPOTrainer

    def make(questions: int, *overrides: str):
        path = tmp_path / f"{questions}.parquet"
        rows = [
            {
                "data_source": "toy_modular",
                "prompt": [{"role": "user", "content": f"question {i}"}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(i)},
                "extra_info": {"split": "train", "index": i, "question_id": f"q{i}"},
            }
            for i in range(questions)
        ]
        pd.DataFrame(rows).to_parquet(path)
        config = compose(
            f"data.train_files={path}",
            f"data.val_files={path}",
            f"data.train_batch_size={B}",
            f"actor_rollout_ref.rollout.n={K}",
            f"actor_rollout_ref.model.path={TOY}",
            f"trainer.default_local_dir={tmp_path}/run",
            "exgrpo.start_threshold=null",
            *overrides,
        )
        trainer = ExGRPOTrainer(config)
        trainer._init_tokenizer()
        trainer._init_dataloader()
        trainer.global_steps = 0
        return trainer

    return make


def next_batch(trainer) -> dict[str, int]:
    """Question id -> number of rollouts of the next training batch, in order."""
    trainer.global_steps += 1
    batch = trainer._next_train_batch()
    assert len(set(batch["uid"])) == B
    assert all("_" not in uid for uid in batch["uid"])
    ids = [question_id(info) for info in batch["extra_info"]]
    assert [trainer.questions[uid] for uid in batch["uid"]] == ids
    return dict(zip(ids, list(batch["__rollout_n__"]), strict=True))


def train(trainer, rng: np.random.Generator) -> dict[str, int]:
    """One step with made-up outcomes: plan, then books as after a real rollout."""
    batch = next_batch(trainer)
    replay, step = trainer.replay, trainer.global_steps
    groups = []
    for question, rollouts in batch.items():
        past = None
        if rollouts == K - 1:
            chosen = replay.select(question, None)
            replay.replayed(chosen, step)
            past = chosen.reward
        groups.append(Group(question, list((rng.random(rollouts) < 0.4).astype(float)), past))
    for position, members in replay.grade(groups).items():
        for member in members:
            ids = rng.integers(0, 50, size=5 + member)
            replay.store(groups[position].question, ids, -rng.random(len(ids)), 1.0, step)
    replay.finish_step(step, 0.4)
    return batch


def test_the_cursor_moves_by_fresh_questions_only(make_trainer):
    trainer = make_trainer(64, "data.shuffle=false", "exgrpo.trajectory.select=random")
    rng = np.random.default_rng(0)
    fetched = 0
    for _ in range(5):
        batch = train(trainer, rng)
        fresh = [question for question, rollouts in batch.items() if rollouts == K]
        planned = len(batch) - len(fresh)
        assert trainer.replay.report.planned == planned
        expected = [f"q{i}" for i in range(fetched, fetched + len(fresh) + trainer.passed_over)]
        assert set(fresh) <= set(expected)
        fetched += len(expected)
    assert planned == B // 2
    assert fetched < 5 * B


def test_replayed_questions_are_spread_over_both_mini_batches(make_trainer):
    trainer = make_trainer(64, "exgrpo.trajectory.select=random")
    rng = np.random.default_rng(0)
    for _ in range(4):
        batch = train(trainer, rng)
    counts = list(batch.values())
    assert counts[: B // 2].count(K - 1) == counts[B // 2 :].count(K - 1) == B // 4


def test_retired_questions_are_not_drawn_until_all_are(make_trainer, caplog):
    trainer = make_trainer(12)
    for i in range(4):
        trainer.replay.buffer.retire(f"q{i}")
    for _ in range(4):
        assert not set(next_batch(trainer)) & {f"q{i}" for i in range(4)}
    assert trainer.passed_over > 0
    for i in range(4, 12):
        trainer.replay.buffer.retire(f"q{i}")
    assert len(next_batch(trainer)) == B
    assert "retired" in caplog.text


def test_a_refill_of_failed_groups_is_fresh(make_trainer):
    trainer = make_trainer(64, "exgrpo.trajectory.select=random")
    rng = np.random.default_rng(0)
    for _ in range(3):
        train(trainer, rng)
    assert "__rollout_n__" not in trainer._next_train_batch(2)
    assert len(trainer.questions) == B + 2


# 20 questions and 8 a step: steps 3, 5, 8 ... cross an epoch's end; 24 questions also end one exactly.
@pytest.mark.parametrize("questions", [20, 24, 8])
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_resume_gives_the_same_next_batches(make_trainer, questions, stop):
    def run(trainer, steps, rng):
        return [train(trainer, rng) for _ in range(steps)]

    whole = make_trainer(questions, "exgrpo.trajectory.select=random", "data.seed=3")
    rng = np.random.default_rng(1)
    run(whole, stop, rng)
    whole.experience.save(stop, whole.replay)
    data = whole.train_dataloader.state_dict()
    outcomes = json.loads(json.dumps(rng.bit_generator.state))
    expected = run(whole, 12, rng)

    resumed = make_trainer(questions, "exgrpo.trajectory.select=random", "data.seed=3")
    resumed.global_steps = stop
    resumed.train_dataloader.load_state_dict(data)
    resumed.experience.load(stop, resumed.replay, known=resumed.question_rows)
    rng.bit_generator.state = outcomes
    assert run(resumed, 12, rng) == expected
    assert any(K - 1 in batch.values() for batch in expected)


def test_a_checkpoint_without_experience_is_refused_unless_allowed(make_trainer, tmp_path, caplog):
    trainer = make_trainer(20)
    (tmp_path / "run/global_step_5/actor").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"global_step_5.*exgrpo.resume_without_experience=true"):
        trainer.experience.load(5, trainer.replay, known=trainer.question_rows)
    allowed = make_trainer(20, "exgrpo.resume_without_experience=true")
    allowed.experience.load(5, allowed.replay, known=allowed.question_rows)
    assert "no experience" in caplog.text


def test_questions_that_left_the_dataset_are_discarded_on_resume(make_trainer):
    trainer = make_trainer(64, "exgrpo.trajectory.select=random")
    rng = np.random.default_rng(0)
    for _ in range(4):
        train(trainer, rng)
    trainer.experience.save(4, trainer.replay)
    smaller = make_trainer(20, "exgrpo.trajectory.select=random")
    smaller.experience.load(4, smaller.replay, known=smaller.question_rows)
    assert set(smaller.replay.buffer.questions()) <= {f"q{i}" for i in range(20)}
    for _ in range(3):
        train(smaller, rng)


def test_experience_is_pruned_with_the_actor(make_trainer, tmp_path):
    trainer = make_trainer(20)
    for step in (1, 2, 3):
        trainer.experience.save(step, trainer.replay)
    for step in (2, 3):
        (tmp_path / f"run/global_step_{step}/actor").mkdir()
    trainer.experience.prune()
    assert sorted(path.parent.name for path in tmp_path.glob("run/*/experience")) == ["global_step_2", "global_step_3"]


def test_duplicate_ids_end_the_run_before_any_worker_starts(make_trainer, monkeypatch):
    monkeypatch.setattr("recipe.exgrpo.trainer.trainer.index_questions", lambda infos: index_twice(infos))
    with pytest.raises(ValueError, match="occurs in rows"):
        make_trainer(20)


def index_twice(infos):
    from verl_ext.dataset import index_questions

    return index_questions([*infos, next(iter(infos))])
