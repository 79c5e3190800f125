"""Steps of the real trainer, dataset and dataloader, without workers: the data cursor, retirement, resume."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recipe.exgrpo.checkpoint.errors import MismatchedState
from recipe.exgrpo.core.buffer import Response
from recipe.exgrpo.core.policies.policy import Group, Tools
from recipe.exgrpo.core.selection import Scores
from recipe.exgrpo.trainer.prompts import current_answers
from verl_ext.dataset import question_id

pytestmark = pytest.mark.verl

K, B = 4, 8
TOY = "data/toy/model"


@pytest.fixture
def make_trainer(tmp_path, compose):
    """make_trainer(questions, *overrides) -> an ExGRPOTrainer with its data loaded and no workers."""
    from recipe.exgrpo.trainer.trainer import ExGRPOTrainer

    def make(questions: int, *overrides: str, wording: str = "question"):
        path = tmp_path / f"{questions} {wording}.parquet"
        rows = [
            {
                "data_source": "toy_modular",
                "prompt": [{"role": "user", "content": f"{wording} {i}"}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(i)},
                "extra_info": {"split": "train", "index": i, "question_id": f"q{i}"},
            }
            for i in range(questions)
        ]
        pd.DataFrame(rows).to_parquet(path)
        config = compose(
            f"data.train_files='{path}'",
            f"data.val_files='{path}'",
            f"data.train_batch_size={B}",
            f"actor_rollout_ref.rollout.n={K}",
            f"actor_rollout_ref.model.path={TOY}",
            f"trainer.default_local_dir={tmp_path}/run",
            "data.filter_overlong_prompts=false",  # a process of its own each time
            "exgrpo.start_threshold=null",
            *overrides,
        )
        trainer = ExGRPOTrainer(config)
        trainer._init_tokenizer()
        trainer._init_dataloader()
        trainer.global_steps = 0
        if trainer.policy.store is not None:
            trainer.policy.store.origin = current(trainer).origin  # as `_load_checkpoint` does at every start
        return trainer

    return make


def current(trainer):
    """What the trainer's rollouts answer, as it tells the checkpoint."""
    return current_answers(
        trainer.config, trainer.tokenizer, trainer.model_type, trainer.train_dataset, trainer.question_rows
    )


def load(trainer, step: int) -> None:
    trainer.experience.load(step, trainer.policy, trainer.question_rows, current(trainer))


def next_batch(trainer) -> dict[str, int]:
    """Question id -> number of rollouts of the next training batch, in order."""
    trainer.global_steps += 1
    batch = trainer._next_train_batch()
    assert len(set(batch["uid"])) == B
    assert all("_" not in uid for uid in batch["uid"])
    ids = [question_id(info) for info in batch["extra_info"]]
    assert [trainer.current.slots[uid].question for uid in batch["uid"]] == ids
    return dict(zip(ids, list(batch["__rollout_n__"]), strict=True))


def prompt_of(trainer, question: str) -> list[int]:
    """The prompt's ids by the tokenizer's own template, which is what the agent loop sends for a single turn."""
    messages = trainer.train_dataset[trainer.question_rows[question]]["raw_prompt"]
    return list(trainer.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False))


def train(trainer, rng: np.random.Generator) -> list:
    """One step with made-up outcomes: the policy's calls as after a real rollout; returns batch, and what was replayed."""
    batch = next_batch(trainer)
    policy, step = trainer.policy, trainer.global_steps
    slots = list(trainer.current.slots.values())
    groups = [
        Group(s.question, (rng.random(s.rollouts) < 0.4).astype(float).tolist(), planned=s.planned) for s in slots
    ]

    def read(members):
        answers = [rng.integers(0, 50, size=5 + j) for _, j in members]
        prompts = [prompt_of(trainer, groups[i].question) for i, _ in members]
        return [
            Response(ids, -rng.random(len(ids)), prompt_ids=prompt)
            for ids, prompt in zip(answers, prompts, strict=True)
        ]

    tools = Tools(score=lambda stored: Scores(*rng.random((4, len(stored)))), read=read, entropies=None)
    replayed = []
    for i, joined in policy.inject(groups, tools, step).items():
        groups[i].joined += joined
        replayed += [(i, t.row, t.token_ids.tolist()) for t in joined]
    arrangement = policy.arrange(groups, tools, step)
    replayed += [(one.trajectory.row, one.trajectory.token_ids.tolist(), one.advantage) for one in arrangement.place]
    policy.finish(groups, tools, step, 0.4)
    return [batch, replayed]


def run(trainer, steps: int, rng: np.random.Generator) -> list:
    return [train(trainer, rng) for _ in range(steps)]


# ---- the cursor


def test_the_cursor_moves_by_fresh_questions_only(make_trainer):
    trainer = make_trainer(64, "data.shuffle=false", "exgrpo.rank=random")
    rng = np.random.default_rng(0)
    fetched = 0
    for _ in range(5):
        batch, _ = train(trainer, rng)
        fresh = [question for question, rollouts in batch.items() if rollouts == K]
        planned = len(batch) - len(fresh)
        assert trainer.policy.metrics(trainer.global_steps)["planned_questions"] == planned
        expected = [f"q{i}" for i in range(fetched, fetched + len(fresh) + trainer.cursor.skipped)]
        assert set(fresh) <= set(expected)
        fetched += len(expected)
    assert planned == B // 2
    assert fetched < 5 * B


def test_replayed_questions_are_spread_over_both_mini_batches(make_trainer):
    trainer = make_trainer(64, "exgrpo.rank=random")
    rng = np.random.default_rng(0)
    for _ in range(4):
        batch, _ = train(trainer, rng)
    counts = list(batch.values())
    assert counts[: B // 2].count(K - 1) == counts[B // 2 :].count(K - 1) == B // 4


def test_retired_questions_are_not_drawn_until_all_are(make_trainer, caplog):
    trainer = make_trainer(12)
    for i in range(4):
        trainer.policy.store.retire(f"q{i}")
    for _ in range(4):
        assert not set(next_batch(trainer)) & {f"q{i}" for i in range(4)}
    assert trainer.cursor.skipped > 0
    for i in range(4, 12):
        trainer.policy.store.retire(f"q{i}")
    assert len(next_batch(trainer)) == B
    assert "retired" in caplog.text


def test_questions_in_place_of_failed_groups_are_fresh(make_trainer):
    trainer = make_trainer(64, "exgrpo.rank=random")
    run(trainer, 3, np.random.default_rng(0))
    trainer._next_train_batch(2)
    assert len(trainer.current.slots) == B + 2
    whole = trainer.config.actor_rollout_ref.rollout.n
    assert [slot.rollouts for slot in list(trainer.current.slots.values())[B:]] == [whole, whole]


# ---- resume


# 20 questions and 8 a step: steps 3, 5, 8 ... cross an epoch's end; 24 questions also end one exactly.
@pytest.mark.parametrize("questions", [20, 24, 8])
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_resume_gives_the_same_next_batches(make_trainer, questions, stop):
    found = whole_and_resumed(make_trainer, questions, stop, "exgrpo.rank=random")
    assert any(K - 1 in batch.values() for batch, _ in found)


@pytest.mark.parametrize(
    "overrides",
    [
        ("exgrpo.bookkeeping.review_interval=2", "exgrpo.bookkeeping.review_share=0.5"),
        ("exgrpo.policy=refill",),
        ("exgrpo.policy=refill", "exgrpo.rank=lowest_entropy"),
        ("exgrpo.policy=outside_policy:Rescue", "exgrpo.options={max_age_steps: 30}"),
    ],
    ids=str,
)
def test_resume_gives_the_same_batches_and_replays_under_every_policy(make_trainer, overrides):
    found = whole_and_resumed(make_trainer, 24, 5, *overrides)
    assert sum(len(replayed) for _, replayed in found) > 5


def whole_and_resumed(make_trainer, questions: int, stop: int, *overrides: str) -> list:
    """Twelve steps after step `stop`, which are the same whether or not the run was interrupted there."""
    whole = make_trainer(questions, "data.seed=3", *overrides)
    rng = np.random.default_rng(1)
    run(whole, stop, rng)
    whole.experience.save(stop, whole.policy)
    data = whole.train_dataloader.state_dict()
    outcomes = json.loads(json.dumps(rng.bit_generator.state))
    expected = run(whole, 12, rng)

    resumed = make_trainer(questions, "data.seed=3", *overrides)
    resumed.global_steps = stop
    resumed.train_dataloader.load_state_dict(data)
    load(resumed, stop)
    rng.bit_generator.state = outcomes
    assert run(resumed, 12, rng) == expected
    assert resumed.policy.metrics(stop + 12) == whole.policy.metrics(stop + 12)
    return expected


def test_a_checkpoint_without_experience_is_refused_unless_allowed(make_trainer, tmp_path, caplog):
    trainer = make_trainer(20)
    (tmp_path / "run/global_step_5/actor").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"global_step_5.*exgrpo.resume_without_experience=true"):
        load(trainer, 5)
    load(make_trainer(20, "exgrpo.resume_without_experience=true"), 5)
    assert "no experience" in caplog.text


@pytest.mark.parametrize("policy", ["on_policy", "masked"])
def test_a_policy_without_a_store_saves_and_asks_for_nothing(make_trainer, tmp_path, policy):
    trainer = make_trainer(20, f"exgrpo.policy={policy}")
    trainer.experience.save(5, trainer.policy)
    load(trainer, 5)
    assert not list(tmp_path.glob("run/**/experience"))


def test_questions_that_left_the_dataset_are_discarded_on_resume(make_trainer):
    trainer = make_trainer(64, "exgrpo.rank=random")
    run(trainer, 4, np.random.default_rng(0))
    trainer.experience.save(4, trainer.policy)
    smaller = make_trainer(20, "exgrpo.rank=random")
    load(smaller, 4)
    assert set(smaller.policy.store.questions()) <= {f"q{i}" for i in range(20)}
    run(smaller, 3, np.random.default_rng(1))


def test_a_question_under_review_may_leave_the_dataset(make_trainer):
    review = ("exgrpo.bookkeeping.review_interval=1", "exgrpo.bookkeeping.review_share=1.0")
    trainer = make_trainer(64, *review)
    for i in (3, 40):
        trainer.policy.store.retire(f"q{i}")
    trainer.policy.finish([], None, 4, 0.5)
    trainer.experience.save(4, trainer.policy)
    smaller = make_trainer(20, *review)
    load(smaller, 4)
    assert next_batch(smaller)["q3"] == K


def test_experience_is_pruned_with_the_actor(make_trainer, tmp_path):
    trainer = make_trainer(20)
    for step in (1, 2, 3):
        trainer.experience.save(step, trainer.policy)
    for step in (2, 3):
        (tmp_path / f"run/global_step_{step}/actor").mkdir()
    trainer.experience.prune()
    assert sorted(path.parent.name for path in tmp_path.glob("run/*/experience")) == ["global_step_2", "global_step_3"]


# ---- what stored trajectories answer


@pytest.fixture
def saved(make_trainer):
    """A trainer after four steps and a checkpoint."""
    trainer = make_trainer(20, "exgrpo.rank=random")
    run(trainer, 4, np.random.default_rng(0))
    trainer.experience.save(4, trainer.policy)
    return trainer


@pytest.mark.parametrize(
    ("key", "wording", "overrides", "dropped"),
    [
        ("prompt", "another wording", (), True),
        ("temperature", "question", ("actor_rollout_ref.rollout.temperature=0.7",), False),
        ("length", "question", ("data.max_response_length=5", "actor_rollout_ref.actor.loss_scale_factor=64"), True),
        ("policy", "question", ("exgrpo.policy=refill",), False),
    ],
)
def test_what_no_longer_fits_is_refused_by_the_key_that_accepts_it(
    make_trainer, saved, key, wording, overrides, dropped
):
    stored = saved.policy.metrics(4)["buffer_trajectories"]
    with pytest.raises(MismatchedState, match=rf"exgrpo\.resume_allow=\[{key}\] accepts it"):
        load(make_trainer(20, *overrides, wording=wording), 4)
    accepted = make_trainer(20, *overrides, f"exgrpo.resume_allow=[{key}]", wording=wording)
    load(accepted, 4)
    left = accepted.policy.metrics(4)["buffer_trajectories"]
    assert (left < stored) == dropped
    accepted.global_steps = 4
    run(accepted, 2, np.random.default_rng(1))


def test_another_template_is_refused_with_the_prompts_that_it_makes(make_trainer, saved):
    changed = make_trainer(20, "exgrpo.rank=random")
    changed.tokenizer.chat_template = "{{ 'say: ' }}" + changed.tokenizer.chat_template
    with pytest.raises(MismatchedState, match=r"exgrpo\.resume_allow=\[chat_template,prompt\] accepts it"):
        load(changed, 4)


TOOL = """
from verl.tools.function_tool import function_tool

@function_tool
def {name}(expression: str) -> str:
    \"\"\"A calculator.

    Args:
        expression: {what}.
    \"\"\"
    return expression
"""


def test_other_tools_are_refused_by_the_key_that_accepts_them(make_trainer, saved, tmp_path):
    """The toy's template does not show tools, so that prompts are the same; a schema, not a path, is what counts."""
    multi_turn = "actor_rollout_ref.rollout.multi_turn"
    loop = "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent"

    def made(name, what, *overrides):
        path = tmp_path / f"{name}.py"
        path.write_text(TOOL.format(name=name, what=what))
        return make_trainer(20, "exgrpo.rank=random", loop, f"{multi_turn}.function_tool_path={path}", *overrides)

    with pytest.raises(MismatchedState, match=r"with other tools.*exgrpo\.resume_allow=\[tools\] accepts it"):
        load(made("resumed_a", "a sum"), 4)
    accepted = made("resumed_b", "a sum", "exgrpo.resume_allow=[tools]")
    load(accepted, 4)
    assert accepted.policy.metrics(4)["buffer_trajectories"] == saved.policy.metrics(4)["buffer_trajectories"] > 0
    assert accepted.policy.store.origin.tools
    accepted.global_steps = 4
    run(accepted, 1, np.random.default_rng(1))
    accepted.experience.save(5, accepted.policy)
    with pytest.raises(MismatchedState, match=r"resume_allow=\[tools\]"):
        load(made("resumed_c", "a product"), 5)


def test_the_same_prompts_are_accepted_without_a_word(make_trainer, saved):
    same = make_trainer(20, "exgrpo.rank=random")
    load(same, 4)
    assert same.policy.metrics(4)["buffer_trajectories"] == saved.policy.metrics(4)["buffer_trajectories"] > 0
    rows = same.policy.store.candidates().row
    assert all(same.policy.store.trajectory(int(row)).prompt_hash for row in rows)  # all of them were compared


# ---- before anything starts


@pytest.mark.parametrize(("policy", "estimator"), [("on_policy", "grpo"), ("exgrpo", "exgrpo"), ("masked", "exgrpo")])
def test_the_estimator_follows_from_the_policys_loss(make_trainer, policy, estimator):
    assert make_trainer(20, f"exgrpo.policy={policy}").config.algorithm.adv_estimator == estimator


def test_an_unknown_policy_ends_the_run_before_any_worker_starts(make_trainer):
    with pytest.raises(ValueError, match=r"exgrpo\.policy=exgrp is unknown; did you mean exgrpo\?"):
        make_trainer(20, "exgrpo.policy=exgrp")


def test_duplicate_ids_end_the_run_before_any_worker_starts(make_trainer, monkeypatch):
    monkeypatch.setattr("recipe.exgrpo.trainer.trainer.index_questions", lambda infos: index_twice(infos))
    with pytest.raises(ValueError, match="occurs in rows"):
        make_trainer(20)


def index_twice(infos):
    from verl_ext.dataset import index_questions

    return index_questions([*infos, next(iter(infos))])


# ---- training files that changed


class Actor:
    """Workers that keep no weights."""

    def save_checkpoint(self, path: str, *_, **__) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)

    def load_checkpoint(self, **_) -> None:
        pass


@pytest.mark.parametrize(("questions", "expected"), [(24, 16), (8, 0), (17, 0), (64, 0)])
def test_changed_training_files_start_at_their_beginning(make_trainer, tmp_path, caplog, questions, expected):
    """Fewer rows than were drawn ended in StopIteration; of more, the first were never seen. The same file goes on."""
    fixed = ("data.shuffle=false", "exgrpo.policy=on_policy", "exgrpo.resume_allow=[data]")
    before, after = make_trainer(24, *fixed), make_trainer(questions, *fixed)
    before.actor_rollout_wg = after.actor_rollout_wg = Actor()
    before._load_checkpoint()
    assert [question for _ in range(2) for question in next_batch(before)] == [f"q{i}" for i in range(2 * B)]
    before._save_checkpoint()
    after._load_checkpoint()
    assert after.global_steps == 2
    assert list(next_batch(after)) == [f"q{i}" for i in range(expected, min(expected + B, questions))]
    assert ("start at their beginning" in caplog.text) is (questions != 24)
