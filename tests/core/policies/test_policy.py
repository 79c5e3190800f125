"""The interface: the on-policy baseline, a policy by name or import path, its options, and what it refuses."""

import json
import math
import re
from dataclasses import dataclass

import pytest
from steps import K, Lent, Loader, fresh, make, past, rewards

from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies import POLICIES, Policy, make_policy, policy_class
from recipe.exgrpo.core.policies.metrics import METRICS
from recipe.exgrpo.core.policies.policy import Arrangement, Group, Placed, Slot, without_signal


@dataclass(frozen=True)
class Settings:
    """Options of a policy of one's own."""

    depth: int = 3
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"exgrpo.options.depth must be at least 1; got {self.depth}.")


class Deep(Policy):
    """A policy of one's own, with options."""

    Options = Settings


class Planning(Policy):
    plans_questions = True


HERE = __name__


# ---- the on-policy baseline


def test_on_policy_trains_on_k_rollouts_of_the_next_questions_and_keeps_nothing():
    policy, loader = make("on_policy"), fresh()
    assert policy.plan(3, loader) == [Slot(f"fresh{i}", K) for i in range(3)]
    assert policy.draw(loader) == Slot("fresh3", K)
    groups, lent = [Group("a", rewards(3)), Group("b", rewards(0)), Group("c", rewards(K))], Lent()
    assert policy.inject(groups, lent.tools, 1) == {}
    assert policy.arrange(groups, lent.tools, 1) == Arrangement()
    policy.finish(groups, lent.tools, 1, 0.9)
    assert (lent.scored, lent.read, policy.store, policy.active) == ([], [], None, False)
    assert policy.loss is None  # verl's own
    assert policy.metrics(1) == dict.fromkeys(METRICS, 0.0)
    assert Policy.stored_rollouts(policy.config, 64, 500) == 0


def test_on_policy_takes_a_question_twice_when_the_loader_gives_it_twice():
    assert [slot.question for slot in make("on_policy").plan(3, Loader("aab"))] == ["a", "a", "b"]


def test_the_generator_is_saved_and_seeded_by_the_configuration():
    policy = make("on_policy", seed=4)
    assert policy.rng.random() == make("on_policy", seed=4).rng.random()
    policy.rng.random(7)  # a state that the seed alone does not give
    state = json.loads(json.dumps(policy.state_dict()))
    drawn = policy.rng.random(5).tolist()
    assert (
        drawn
        == make("on_policy", seed=4).rng.random(13)[8:].tolist()
        != make("on_policy", seed=5).rng.random(13)[8:].tolist()
    )
    resumed = make("on_policy", seed=5)
    resumed.load_state_dict(state, None)
    assert resumed.rng.random(5).tolist() == drawn


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_reports_every_metric_with_its_sentence(name):
    policy = make(name, start_threshold=0.5)
    policy.plan(2, fresh())
    metrics = policy.metrics(1)
    assert set(METRICS) <= set(metrics)
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    rest = set(metrics) - set(METRICS)
    assert all(metric.startswith(("bucket/", "evicted/")) for metric in rest)
    assert bool(rest) == (policy.store is not None)
    assert all(sentence.endswith(".") for sentence in METRICS.values())


@pytest.mark.parametrize("name", POLICIES)
def test_groups_of_one_rollout_are_refused(name):
    with pytest.raises(ValueError, match=r"actor_rollout_ref\.rollout\.n"):
        make(name, group_size=1)


def test_a_store_may_come_to_hold_every_rollout_of_a_run():
    assert POLICIES["exgrpo"].stored_rollouts(ExGRPOConfig(), 64, 500) == 64 * 500


# ---- groups and arrangements


def test_a_group_counts_who_joined():
    group = Group("q", [0.0, 1.0], [past(reward=0.75)])
    assert (group.rewards, group.size) == ([0.0, 1.0, 0.75], 3)


def test_more_trajectories_than_places_are_refused():
    with pytest.raises(ValueError, match="2 trajectories cannot take the places of 1 rollouts"):
        Arrangement(leave=[(0, 0)], place=[Placed(past(), 1.0)] * 2)


# ---- by name or import path


@pytest.mark.parametrize(("name", "kind"), POLICIES.items())
def test_a_policy_by_name(name, kind):
    assert type(make(name)) is policy_class(name) is kind


def test_a_policy_by_import_path():
    assert type(make(f"{HERE}:Planning")) is Planning
    assert type(make("recipe.exgrpo.core.policies.masked:Masked")) is POLICIES["masked"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("exgrp", "exgrpo.policy=exgrp is unknown; did you mean exgrpo?"),
        ("re_fill", "did you mean refill?"),
        ("ppo2", f"known: {', '.join(POLICIES)}"),
        ("no_such_folder.module:Class", "exgrpo.policy=no_such_folder.module:Class cannot be imported"),
        ("recipe.exgrpo.core.policies.masked:Maskd", "cannot be imported"),
        (f"{HERE}:Settings", "is not a class derived from recipe.exgrpo.core.policies.Policy"),
        (f"{HERE}:HERE", "is not a class derived from recipe.exgrpo.core.policies.Policy"),
    ],
)
def test_what_is_no_policy_is_refused_with_the_nearest_name(name, words):
    with pytest.raises(ValueError, match=rf"exgrpo\.policy.*{re.escape(words.removeprefix('exgrpo.policy'))}"):
        make(name)


# ---- exgrpo.inject


@pytest.mark.parametrize("name", ["on_policy", "refill", "masked", f"{HERE}:Deep"])
def test_inject_false_is_refused_where_no_stored_question_is_planned(name):
    with pytest.raises(ValueError, match=rf"exgrpo\.inject=false.*exgrpo\.policy={name}"):
        make(name, inject=False)


@pytest.mark.parametrize("name", ["exgrpo", f"{HERE}:Planning"])
def test_inject_false_is_a_control_of_planned_questions(name):
    assert not make(name, inject=False).config.inject


# ---- options


def test_options_are_built_from_the_configuration():
    assert make(f"{HERE}:Deep").options == Settings()
    assert make(f"{HERE}:Deep", options={"depth": 7, "share": 1}).options == Settings(7, 1.0)
    assert make("exgrpo").options is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depht": 4}, r"exgrpo\.options\.depht is not a key; did you mean depth\?"),
        ({"nothing": 4}, r"exgrpo\.options\.nothing is not a key; known: depth, share"),
        ({"depth": "deep"}, r"exgrpo\.options\.depth must be int"),
        ({"depth": 0}, r"exgrpo\.options\.depth must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_key(options, words):
    with pytest.raises(ValueError, match=words):
        make(f"{HERE}:Deep", options=options)


@pytest.mark.parametrize("name", [name for name in POLICIES if POLICIES[name].Options is None])
def test_options_are_refused_by_policies_that_have_none(name):
    with pytest.raises(ValueError, match=rf"exgrpo\.options is set, and exgrpo\.policy={name} has none"):
        make_policy(ExGRPOConfig.from_mapping({"policy": name, "options": {"depth": 3}}), K)


# ---- rows on top, and groups without variance


def test_as_many_extra_rows_as_the_batch_has_and_no_more():
    wish = Arrangement(extra=[Placed(past(), 0.5)] * 3)
    wish.check(3)
    with pytest.raises(ValueError, match="3 extra rows on top of a batch of 2"):
        wish.check(2)


def test_a_group_without_variance_is_one_whose_members_all_got_the_same():
    """Stored members count, a group of one has no variance, and an advantage from the policy is a signal."""
    groups = [Group("a", [1.0, 1.0]), Group("b", [0.0, 0.0], [past()]), Group("c", [0.5]), Group("d", [0.0, 1.0])]
    assert without_signal(groups, Arrangement()) == [(0, 0), (0, 1), (2, 0)]
    assert without_signal(groups, Arrangement(advantages={(0, 1): 0.25})) == [(0, 0), (2, 0)]


@pytest.mark.parametrize("name", ["exgrpo", "refill"])
def test_dynamic_sampling_is_refused_where_groups_without_variance_are_needed(name):
    with pytest.raises(ValueError, match=rf"exgrpo\.dynamic_sampling=true .*exgrpo\.policy={name}"):
        make(name, dynamic_sampling=True)


@pytest.mark.parametrize("name", ["on_policy", "masked"])
def test_dynamic_sampling_works_with_policies_that_keep_nothing(name):
    assert make(name, dynamic_sampling=True).config.dynamic_sampling


def test_the_baseline_has_a_loss_of_its_own_for_another_denominator():
    """That of verl divides by all sequences; what else the loss is stays verl's: fresh tokens clipped."""
    loss = make("on_policy", loss={"denominator": "mixed", "fresh_clip": "never"}).loss
    assert (loss.denominator, loss.fresh_clip) == ("mixed", "always")
