"""A policy and a rule from outside the package: they train in the laboratory, are saved, restored, inspected and shown."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from outside_policy import Rescue
from steps import Lent, Loader, make, rewards
from tiny_lab import SETTINGS, K, lab, recorded

from recipe.exgrpo.checkpoint.checkpointer import ExperienceCheckpointer
from recipe.exgrpo.cli.main import main
from recipe.exgrpo.core.policies.policy import Group

torch.set_num_threads(1)
STEPS = 10
RESCUE = "outside_policy:Rescue"
FINGERPRINT = {"model": "m", "tokenizer": "t", "group_size": K, "policy": RESCUE}


# ---- in the laboratory


@cache
def trained(name="exgrpo_at_once", most_groups=None, max_age_steps=50, **overrides):
    """(laboratory, metrics of ten steps, rows of its updates)."""
    if name == "exgrpo_at_once" and "policy" in overrides:
        overrides["options"] = {"max_age_steps": max_age_steps, "most_groups": most_groups}
    run = lab(name, seed=1, **overrides)
    seen = recorded(run)
    return run, [run.step(step) for step in range(1, STEPS + 1)], seen


def weights(run) -> torch.Tensor:
    return run.model.blocks[0].up.weight.detach()


def test_a_failed_group_is_rescued_by_a_success_of_its_own_question():
    run, metrics, seen = trained(policy=RESCUE)
    rescued = 0
    for found, rows in zip(metrics, seen, strict=True):
        groups = [rows[i : i + K] for i in range(0, len(rows), K)]
        helped = [group for group in groups if group[-1].is_replayed]
        assert len(helped) == found["experience/rescued_groups"] == found["experience/replayed_rows"]
        rescued += len(helped)
        for group in helped:
            assert len({row.question for row in group}) == 1
            assert [row.reward for row in group] == [0.0] * (K - 1) + [1.0]
            assert [row.advantage for row in group] == pytest.approx([-1 / K] * (K - 1) + [1 - 1 / K])
        assert not any(row.is_replayed for group in groups for row in group[:-1])
        assert found["batch/rows_out_of_update"] == 0
    assert rescued > 0
    assert run.costs.fresh_rollouts == STEPS * SETTINGS.questions * K
    assert not torch.equal(weights(run), weights(trained("on_policy")[0]))


def test_switched_off_it_is_the_on_policy_baseline():
    run, metrics, _ = trained(policy=RESCUE, max_age_steps=0)
    assert [step["experience/rescued_groups"] for step in metrics] == [0] * STEPS
    assert torch.equal(weights(run), weights(trained("on_policy")[0]))


def test_its_options_reach_it():
    _, metrics, _ = trained(policy=RESCUE, most_groups=1)
    rescued = [step["experience/rescued_groups"] for step in metrics]
    assert max(rescued) == 1 < max(step["experience/rescued_groups"] for step in trained(policy=RESCUE)[1])


def test_a_seed_gives_the_same_run():
    again = lab("exgrpo_at_once", seed=1, policy=RESCUE, options={"max_age_steps": 50})
    assert [again.step(step) for step in range(1, STEPS + 1)] == trained(policy=RESCUE)[1]


def longest_stored(store) -> dict[str, int]:
    """Question -> tokens of its longest stored trajectory."""
    rows = store.candidates()
    questions = [store.trajectory(int(row)).question for row in rows.row]
    return {
        q: max(n for n, other in zip(rows.length.tolist(), questions, strict=True) if other == q) for q in questions
    }


@pytest.mark.parametrize(("rule", "scored"), [("longest", False), ("least_likely", True)])
def test_a_rank_rule_from_outside_decides_who_is_replayed(rule, scored):
    run = lab("exgrpo_at_once", seed=1, rank=f"outside_policy:{rule}")
    seen, replayed = recorded(run), []
    for step in range(1, 6):
        longest = longest_stored(run.policy.store)
        assert (run.step(step)["experience/candidates_scored"] > 0) == (scored and step > 1)
        replayed += [(longest[row.question], len(row.response)) for row in seen[-1] if row.is_replayed]
    assert len(replayed) > 5
    assert len({length for length, _ in replayed}) > 1
    assert all(length == taken for length, taken in replayed) == (rule == "longest")


# ---- saved and restored


def a_step(policy, step: int, world: np.random.Generator, loader: Loader) -> list:
    """A step of made-up rollouts; returns who rescued whom."""
    slots = policy.plan(6, loader)
    groups = [Group(slot.question, rewards(int(world.integers(3)), K)) for slot in slots]
    tools = Lent(ids=lambda i, j: world.integers(100, size=3).tolist()).tools
    found = policy.arrange(groups, tools, step)
    policy.finish(groups, tools, step, 0.3)
    return [
        (member, one.trajectory.row, one.trajectory.token_ids.tolist())
        for member, one in zip(found.leave, found.place, strict=True)
    ]


@pytest.fixture
def saved(tmp_path):
    """(policy after twenty steps, its world and loader as they were then, folder of the checkpoint)."""
    policy, world, loader = make(RESCUE, K), np.random.default_rng(2), Loader([f"q{i}" for i in range(15)])
    for step in range(1, 21):
        a_step(policy, step, world, loader)
    ExperienceCheckpointer(FINGERPRINT).save(tmp_path / "global_step_20", policy.store, policy.state_dict())
    return policy, (world.bit_generator.state, loader.at), tmp_path / "global_step_20"


def test_restored_it_draws_the_same(saved):
    policy, (state, at), folder = saved
    store, stored = ExperienceCheckpointer(FINGERPRINT).load(folder)
    resumed = make(RESCUE, K, seed=9)
    resumed.load_state_dict(stored.extra, store)
    assert resumed.rescued_ever == policy.rescued_ever > 0  # state of its own
    found = []
    for one in (policy, resumed):
        world, loader = np.random.default_rng(0), Loader([f"q{i}" for i in range(15)])
        world.bit_generator.state, loader.at = state, at
        found.append([a_step(one, step, world, loader) for step in range(21, 60)])
    assert found[0] == found[1]
    assert sum(map(len, found[0])) > 10
    assert resumed.metrics(59) == policy.metrics(59)
    assert resumed.rescued_ever == policy.rescued_ever


def test_its_checkpoint_is_inspected_verified_and_exported(saved, capsys, tmp_path):
    policy, _, folder = saved
    assert main(["inspect", str(folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["fingerprint"]["policy"] == RESCUE
    assert str(len(policy.store.candidates())) in json.dumps(shown)
    assert main(["inspect", str(folder), "--verify"]) == 0
    assert main(["inspect", str(folder), "--export", "jsonl", "--out", str(tmp_path / "out")]) == 0
    (written,) = (tmp_path / "out").iterdir()
    records = [json.loads(line) for line in Path(written).read_text().splitlines()]
    assert len(records) == len(policy.store.candidates())


# ---- shown and refused


def test_exgrpo_config_shows_policy_options_and_rule(capsys):
    overrides = [f"exgrpo.policy={RESCUE}", "exgrpo.options={max_age_steps: 7}", "exgrpo.rank=outside_policy:longest"]
    assert main(["config", "backbone=qwen2.5-math-7b", *overrides]) == 0
    shown = capsys.readouterr().out
    for words in (RESCUE, "exgrpo.options.max_age_steps", "7", "outside_policy:longest"):
        assert words in shown


def test_wrong_options_are_refused_with_the_nearest(capsys):
    with pytest.raises(ValueError, match=r"exgrpo\.options\.max_age is not a key; did you mean max_age_steps\?"):
        make(RESCUE, K, options={"max_age": 3})


def test_it_is_imported_by_path_alone():
    assert type(make(RESCUE, K)) is Rescue
    assert Rescue.__module__ == "outside_policy"
