"""Prompt replay: which questions are kept, in what order and when they come, how often, and that nothing stored enters."""

import json

import pytest
from steps import K, Lent, finish, fresh, make, rewards

from recipe.exgrpo.core.policies.policy import Arrangement, Group
from recipe.exgrpo.presets.variants import preset_settings


def prompts(rho=1.0, buffer=None, **values):
    return make("prompts", rho=rho, buffer=buffer or {}, **values)


def solved(policy, counts: dict[str, int], step=1, planned=False, of=K):
    return finish(policy, [Group(q, rewards(k, of), planned=planned) for q, k in counts.items()], step=step)


def planned(policy, size=8) -> list[str]:
    return [slot.question for slot in policy.plan(size, fresh()) if slot.planned]


@pytest.mark.parametrize(
    ("bounds", "kept"), [({}, {2, 3, 4, 5, 6}), ({"low": 0.0, "high": 0.499}, {0, 1, 2, 3})], ids=str
)
def test_questions_within_the_band_are_kept(bounds, kept):
    """The second is ZPPO's: below one half."""
    policy = prompts(prompts=bounds)
    solved(policy, {f"q{k}": k for k in range(K + 1)})
    assert set(policy.kept) == {f"q{k}" for k in kept}
    assert policy.metrics(1)["kept_prompts"] == len(kept)
    assert set(policy.store.questions()) == set(policy.kept)  # what a checkpoint holds


def test_those_nearest_to_one_half_come_first():
    policy = prompts(rho=0.5)
    solved(policy, {"a": 2, "b": 5, "c": 3, "d": 4, "e": 6})
    slots = policy.plan(8, fresh())
    assert {slot.rollouts for slot in slots} == {K}
    assert len(slots) == 8
    assert policy.planned == ["d", "b", "c", "a"]
    assert policy.metrics(2)["planned_questions"] == 4


def test_a_question_is_not_twice_in_a_step():
    policy = prompts(rho=0.5)
    solved(policy, {"fresh0": 4})
    questions = [slot.question for slot in policy.plan(6, fresh())]
    assert sorted(questions) == sorted(set(questions))
    assert "fresh0" in questions


def test_it_rests_before_it_comes_again():
    policy = prompts(buffer={"cooldown_steps": 2})
    solved(policy, {"a": 4}, step=1)
    came = []
    for step in range(2, 9):
        here = planned(policy)
        came.append(bool(here))
        solved(policy, {"a": 4} if here else {"z": 0}, step=step, planned=bool(here))
    assert came == [False, False, True, False, False, True, False]


def test_it_comes_so_many_times_and_not_more():
    policy = prompts(buffer={"max_reuse": 3})
    solved(policy, {"a": 4})
    came = 0
    for step in range(2, 9):
        here = planned(policy)
        came += len(here)
        solved(policy, dict.fromkeys(here, 4), step=step, planned=True)
    assert came == 3
    assert policy.kept == {}


@pytest.mark.parametrize("successes", [0, 1, 7, K])
def test_a_question_that_leaves_the_band_is_forgotten(successes):
    policy = prompts()
    solved(policy, {"a": 4, "b": 4})
    assert planned(policy) == ["a", "b"]
    solved(policy, {"a": successes, "b": 3}, step=2, planned=True)
    assert list(policy.kept) == ["b"]
    assert policy.metrics(2)["graduated_prompts"] == 1
    assert planned(policy) == ["b"]


def test_a_partial_group_changes_nothing():
    policy = prompts()
    solved(policy, {"a": 4})
    solved(policy, {"a": 7, "b": 4}, step=2, of=K - 1)
    assert {question: values[0] for question, values in policy.kept.items()} == {"a": 4}


@pytest.mark.parametrize("inject", [True, False])
def test_nothing_stored_enters_the_update(inject):
    policy = prompts(inject=inject)
    lent = solved(policy, {"a": 4})
    assert lent.read == []
    policy.plan(2, fresh())
    groups = [Group("a", rewards(4), planned=True), Group("x", rewards(0))]
    assert (policy.inject(groups, Lent().tools, 2), policy.arrange(groups, Lent().tools, 2)) == ({}, Arrangement())
    assert policy.loss is None
    assert policy.metrics(2)["replayed_rows"] == 0


def test_the_preset_has_the_papers_numbers():
    values = preset_settings("method", "prompts")
    policy = make(**values)
    assert (policy.config.rho, policy.config.buffer.cooldown_steps, policy.config.buffer.max_reuse) == (0.75, 10, 15)
    assert (policy.config.prompts.low, policy.config.prompts.high) == (0.25, 0.75)


def test_a_resumed_run_plans_the_same_and_forgets_what_left_the_dataset(restored):
    policy = prompts(rho=0.5, buffer={"cooldown_steps": 1})
    solved(policy, {"a": 2, "b": 5, "c": 3})
    resumed = prompts(rho=0.5, buffer={"cooldown_steps": 1})
    resumed.load_state_dict(json.loads(json.dumps(policy.state_dict())), restored(policy.store))
    came = []
    for step in range(2, 6):
        here = planned(policy)
        assert here == planned(resumed)
        came += here
        for one in (policy, resumed):
            solved(one, dict.fromkeys(here, 4), step=step, planned=True)
    assert resumed.state_dict() == policy.state_dict()
    assert len(came) > 3
    store = restored(policy.store)
    store.discard("a")
    resumed.load_state_dict(policy.state_dict(), store)
    assert "a" not in resumed.kept


def test_nothing_before_the_start(restored):
    """Nothing is kept, and what an earlier run kept does not come, until a step was good enough; a resumed run has started."""
    policy = prompts(start_threshold=0.35)
    finish(policy, [Group("a", rewards(4))], pass_rate=0.1)
    assert (policy.active, policy.kept, policy.metrics(1)["replay_active"]) == (False, {}, 0.0)
    policy.kept["z"] = [4, 0, 0]
    assert planned(policy) == []
    finish(policy, [Group("a", rewards(4))], step=2, pass_rate=0.5)
    assert policy.active
    resumed = prompts(start_threshold=0.35)
    resumed.load_state_dict(json.loads(json.dumps(policy.state_dict())), restored(policy.store))
    assert resumed.active
