"""ExGRPO: a step at a time by hand, and whole histories against a model in plain dictionaries."""

import json
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from steps import K, Lent, Loader, finish, fresh, log_probs_of, make, rewards, stored

from recipe.exgrpo.core.buffer import prompt_hash
from recipe.exgrpo.core.config import BookkeepingConfig, ExGRPOConfig
from recipe.exgrpo.core.policies import make_policy
from recipe.exgrpo.core.policies.metrics import METRICS
from recipe.exgrpo.core.policies.policy import Group


def planned(slots) -> list[str]:
    return [slot.question for slot in slots if slot.planned]


def replayed_group(question: str, successes: int = 2) -> Group:
    """A planned question's K - 1 fresh rollouts."""
    return Group(question, rewards(successes, K - 1), planned=True)


def entropies(values):
    """Entropy of trajectory j of `stored`, by its place."""
    return lambda trajectory: values[trajectory.token_ids[0] % 100]


def inject(policy, groups, step=9, **lent):
    """What joins, and what the trainer was asked for."""
    tools = Lent(**lent)
    return policy.inject(groups, tools.tools, step), tools


# ---- delayed start


def test_replay_and_collection_begin_on_the_step_after_the_threshold_is_exceeded():
    policy, loader, seen = make(start_threshold=0.35), fresh(), []
    for step, rate in enumerate([0.2, 0.35, 0.5, 0.0, 0.0], start=1):
        slots = policy.plan(4, loader)
        finish(policy, [Group(f"q{step}", rewards(3)), Group(f"solved{step}", rewards(K))], step, rate)
        metrics = policy.metrics(step)
        seen.append((metrics["replay_active"], len(planned(slots)), metrics["added"], metrics["newly_retired"]))
    # 0.5 is the first rate above 0.35: collection begins in step 4, and what it stored is replayed in step 5.
    assert seen == [(0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0), (1, 0, 3, 1), (1, 1, 3, 1)]


def test_without_a_threshold_the_first_step_collects():
    policy = make()
    policy.plan(4, fresh())
    assert policy.active
    finish(policy, [Group("q", rewards(2))])
    assert (policy.store.latest_count("q"), len(policy.store.rows("q"))) == (2, 2)


@pytest.mark.parametrize("bookkeeping", [{}, {"review_interval": 1, "review_share": 1.0}])
def test_all_metrics_exist_and_are_zero_before_replay(bookkeeping):
    policy = make(start_threshold=0.35, bookkeeping=bookkeeping)
    assert planned(policy.plan(4, fresh())) == []
    finish(policy, [Group("a", rewards(K)), Group("b", rewards(3)), Group("c", [1.0])], pass_rate=0.1)
    metrics = policy.metrics(1)
    assert set(METRICS) <= set(metrics)
    assert {f"bucket/{k}" for k in range(1, K)} <= set(metrics)
    assert set(metrics.values()) == {0.0}
    assert list(policy.store.questions()) == []


# ---- planning


@pytest.mark.parametrize(
    ("rho", "batch", "eligible", "expected"),
    [
        (0.5, 8, 20, 4),
        (0.5, 7, 20, 3),
        (0.25, 8, 20, 2),
        (0.1, 8, 20, 0),
        (0.29, 100, 120, 29),  # 0.29 * 100 is a hair below 29 in binary
        (1.0, 8, 20, 8),
        (0.5, 8, 3, 3),
        (0.0, 8, 9, 0),
    ],
)
def test_a_plan_has_floor_rho_b_questions_or_all_that_are_eligible(rho, batch, eligible, expected):
    policy = stored(make(rho=rho), {f"q{i}": 1 + i % (K - 1) for i in range(eligible)})
    slots = policy.plan(batch, fresh())
    assert len(slots) == batch
    assert len(set(planned(slots))) == len(planned(slots)) == expected
    assert {(slot.planned, slot.rollouts) for slot in slots} <= {(True, K - 1), (False, K)}
    assert policy.metrics(1)["planned_questions"] == expected


def test_stored_and_fresh_questions_are_interleaved():
    slots = stored(make(), {f"q{i}": 4 for i in range(9)}).plan(8, fresh())
    assert (
        Counter(slot.planned for slot in slots[:4])
        == Counter(slot.planned for slot in slots[4:])
        == {True: 2, False: 2}
    )
    assert [slot.question for slot in slots if not slot.planned] == [f"fresh{i}" for i in range(4)]


def test_before_replay_starts_a_filled_store_is_left_alone():
    policy = stored(make(start_threshold=0.35, rho=1.0), {"q": 4})
    assert planned(policy.plan(4, fresh())) == []
    finish(policy, [], pass_rate=0.5)
    assert planned(policy.plan(4, fresh())) == ["q"]


def test_retired_unsolved_and_empty_questions_are_not_planned():
    policy = stored(make(rho=1.0), {"easy": 3, "hard": 3, "live": 5})
    groups = [Group("easy", rewards(K)), Group("hard", rewards(0))]
    finish(policy, groups)
    policy.store.record("new", 1)  # a count, and nothing stored yet
    assert planned(policy.plan(10, fresh())) == ["live"]


def test_the_loader_skips_what_is_planned_already_in_the_step_or_retired():
    policy = stored(make(rho=0.5), {"a": 4})
    policy.store.retire("b")
    loader = Loader("abcdc")
    slots = policy.plan(3, loader)
    assert sorted(slot.question for slot in slots) == ["a", "c", "d"]
    assert loader.skipped == ["a", "b"]
    # In place of a group whose rollouts all failed: nothing of this step either, but for want of another question.
    assert policy.draw(Loader("abcde")).question == "e"


def test_retired_questions_come_back_when_fewer_than_a_step_are_left(caplog):
    policy = make()
    for question in "abc":
        policy.store.retire(question)
    for _ in range(3):
        assert {slot.question for slot in policy.plan(4, Loader("abcdefg"))} == set("defg")
    policy.store.retire("d")
    assert len({slot.question for slot in policy.plan(4, Loader("abcdefg"))}) == 4
    assert "retired" in caplog.text


def test_two_seeds_plan_differently():
    counts = {f"q{i}": 1 + i % (K - 1) for i in range(40)}
    plans = [planned(stored(make(seed=seed), counts).plan(16, fresh())) for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


# ---- injection


def test_the_lowest_entropy_joins_and_all_scores_are_remembered():
    policy = stored(make(), {"q": 4}, rows=4)
    joined, tools = inject(
        policy, [Group("other", rewards(3)), replayed_group("q")], entropy=entropies([0.9, 0.3, 0.1, 0.4])
    )
    ((position, (trajectory,)),) = joined.items()
    assert position == 1
    assert trajectory.row == policy.store.rows("q")[2]
    assert trajectory.token_ids.tolist() == [2, 7]
    assert trajectory.entropy == pytest.approx(0.1)
    found = [policy.store.trajectory(int(row)) for row in policy.store.rows("q")]
    assert [t.entropy for t in found] == pytest.approx([0.9, 0.3, 0.1, 0.4])
    assert [t.nll for t in found] == pytest.approx([-0.9, -0.3, -0.1, -0.4])
    assert [t.use_count for t in found] == [0, 0, 1, 0]
    assert [len(call) for call in tools.scored] == [4]
    assert policy.metrics(9)["candidates_scored"] == 4


def test_all_questions_are_scored_in_one_call_and_each_gets_its_own_best():
    policy = stored(make(rho=1.0), {"a": 4, "b": 5}, rows=3)
    values = {0: 0.5, 1: 0.2, 2: 0.3, 100: 0.1, 101: 0.9, 102: 0.05}
    groups = [replayed_group("b"), replayed_group("a")]
    joined, tools = inject(policy, groups, entropy=lambda t: values[int(t.token_ids[0])])
    assert {i: [int(t.token_ids[0]) for t in found] for i, found in joined.items()} == {0: [102], 1: [1]}
    assert [[int(t.token_ids[0]) for t in call] for call in tools.scored] == [[100, 101, 102, 0, 1, 2]]


@pytest.mark.parametrize("rank", ["random", "newest", "oldest", "rarity"])
def test_rules_that_use_no_scores_ask_for_none(rank):
    policy = stored(make(rank=rank), {"q": 4}, rows=3)
    joined, tools = inject(policy, [replayed_group("q")])
    assert joined[0][0].row in policy.store.rows("q")
    assert tools.scored == []
    assert policy.metrics(9)["candidates_scored"] == 0


def test_replayed_trajectories_are_counted_with_age_reuse_and_entropy():
    policy = stored(make(rho=1.0), {"a": 4, "b": 5}, rows=2)
    assert len(planned(policy.plan(2, fresh()))) == 2
    values = {
        0: 0.2,
        1: 0.6,
        100: 0.6,
        101: 0.4,
    }  # taken: the first of "a", born in step 0, the second of "b", in step 1
    inject(policy, [replayed_group("a"), replayed_group("b")], entropy=lambda t: values[int(t.token_ids[0])])
    finish(policy, [], step=9)
    metrics = policy.metrics(9)
    expected = {
        "planned_questions": 2,
        "replayed_questions": 2,
        "replayed_rows": 2,
        "skipped_replays": 0,
        "candidates_scored": 4,
        "selected_entropy_mean": 0.3,
        "age_steps_mean": 8.5,
        "age_steps_max": 9,
        "reuse_mean": 1,
        "reuse_max": 1,
        "buffer_questions": 2,
        "buffer_trajectories": 4,
        "bucket/4": 1,
        "bucket/5": 1,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["buffer_bytes"] > 0
    policy.plan(2, fresh())
    inject(policy, [replayed_group("a")], step=10, entropy=lambda t: values[int(t.token_ids[0])])
    assert policy.metrics(10)["reuse_max"] == 2
    assert policy.metrics(10)["skipped_replays"] == 1  # all rollouts of "b" failed: it has no group


def test_a_report_covers_one_step():
    policy = stored(make(rho=1.0), {"a": 4})
    policy.plan(2, fresh())
    inject(policy, [replayed_group("a")], step=1)
    finish(policy, [Group("b", rewards(K)), Group("c", [1.0])])
    assert policy.metrics(1)["replayed_questions"] == 1
    policy.store.retire("a")
    policy.plan(2, fresh())
    finish(policy, [], step=2)
    metrics = policy.metrics(2)
    per_step = ("replayed_questions", "planned_questions", "candidates_scored", "newly_retired", "partial_groups")
    assert {name: metrics[name] for name in per_step} == dict.fromkeys(per_step, 0)
    assert metrics["replay_active"] == 1.0


def test_a_score_that_is_not_finite_does_not_spoil_the_metrics():
    policy = stored(make(), {"q": 4}, rows=2)
    joined, _ = inject(policy, [replayed_group("q")], step=1, entropy=lambda trajectory: math.nan)
    assert joined[0][0].token_ids[0] == 0
    assert policy.metrics(1)["selected_entropy_mean"] == 0.0


def test_a_trajectory_that_may_not_enter_is_neither_scored_nor_taken():
    policy = stored(make(rho=1.0, gate="recent", refill={"max_age_steps": 8}), {"old": 4, "mixed": 4}, rows=2)
    policy.plan(2, fresh())
    row = policy.store.rows("old")[1]
    for step in (3, 4, 5):  # as often as `refill.reps` allows
        policy.store.mark_used(row, step)
    joined, tools = inject(policy, [replayed_group("old"), replayed_group("mixed")], step=9)  # ages 9 and 8
    assert {i: [t.birth_step for t in found] for i, found in joined.items()} == {1: [1]}
    assert [[t.token_ids.tolist() for t in call] for call in tools.scored] == [[[101, 7]]]
    assert policy.metrics(9)["skipped_replays"] == 1


def test_a_rule_for_places_is_refused():
    with pytest.raises(ValueError, match=r"exgrpo\.place=zero_variance.*exgrpo\.policy=exgrpo"):
        make(place="zero_variance")


# ---- exgrpo.inject: false


def test_without_injection_the_same_questions_get_all_their_rollouts_fresh_and_none_counts_as_skipped():
    plans = []
    for inject_ in (True, False):
        policy = stored(make(rho=1.0, inject=inject_), {"a": 3, "b": 3})
        slots = policy.plan(2, fresh())
        plans.append(planned(slots))
        assert {slot.rollouts for slot in slots} == {K - inject_}
        tools = Lent()
        joined = policy.inject([Group("a", rewards(2, K - inject_), planned=True)], tools.tools, 1)
        metrics = policy.metrics(1)
        assert (metrics["planned_questions"], metrics["skipped_replays"]) == (2, int(inject_))
        assert (len(joined), len(tools.scored), metrics["replayed_questions"]) == (inject_, inject_, inject_)
    assert plans[0] == plans[1]


def steps_planned(steps: int, **values) -> list[int]:
    """The steps in which the one stored question was planned; all of its rollouts fail to be anything but mixed."""
    policy, found = stored(make(rho=1.0, inject=False, **values), {"q": 3}, rows=2), []
    for step in range(1, steps + 1):
        questions = planned(policy.plan(2, fresh()))
        groups = [Group(question, rewards(3), planned=True) for question in questions]
        assert policy.inject(groups, Lent().tools, step) == {}
        finish(policy, [], step)
        found += [step] * len(questions)
    return found


def test_without_injection_a_drawn_question_still_cools_down():
    assert steps_planned(7) == [1, 2, 3, 4, 5, 6, 7]
    assert steps_planned(7, buffer={"cooldown_steps": 2}) == [1, 4, 7]


def test_without_injection_a_drawn_question_still_uses_its_trajectories_up():
    assert steps_planned(7, buffer={"max_reuse": 3}) == [1, 2, 3]


def test_without_injection_a_question_whose_rollouts_all_failed_was_not_used():
    policy = stored(make(rho=1.0, inject=False), {"q": 3})
    policy.plan(1, fresh())
    policy.inject([], Lent().tools, 1)
    assert policy.store.trajectory(int(policy.store.rows("q")[0])).use_count == 0


# ---- admission and bounds


def test_an_identical_trajectory_is_stored_once():
    policy, answers = make(), [[1, 2], [1, 2], [1, 3], [1, 2]]
    policy.plan(4, fresh())
    finish(policy, [Group("q", rewards(4))], ids=lambda i, j: answers[j])
    assert [policy.store.trajectory(row).token_ids.tolist() for row in policy.store.rows("q")] == [[1, 2], [1, 3]]
    assert policy.metrics(1)["added"] == 2


def test_a_stored_trajectory_says_what_it_was_and_what_its_group_was():
    policy = stored(make(), {"q": 4})
    past = policy.store.trajectory(int(policy.store.rows("q")[0]))
    groups = [Group("other", [0.0] * 7 + [2.0]), Group("q", [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], [past], planned=True)]
    tools = finish(policy, groups, step=6)
    assert tools.read == [[(0, 7), (1, 0), (1, 3)]]  # in one go
    other, first, second = (
        policy.store.trajectory(int(row)) for row in [*policy.store.rows("other"), *policy.store.rows("q")[1:]]
    )
    assert (other.reward, other.birth_step, other.use_count, other.token_ids.tolist()) == (2.0, 6, 0, [0, 7, 7])
    assert other.log_probs.tolist() == pytest.approx(log_probs_of([0, 7, 7]))
    assert other.prompt_hash == prompt_hash([0, 1])
    assert not len(other.prompt_ids)  # the question's own prompt is read anew each time
    assert (other.provenance.successes, other.provenance.size, other.provenance.advantage) == (1, K, 1.75)
    assert (second.provenance.successes, second.provenance.size, second.provenance.advantage) == (3, K, 1 - 3 / 8)
    assert first.provenance.group == second.provenance.group != other.provenance.group


def test_bounds_of_the_store_are_enforced_at_the_end_of_a_step():
    policy = stored(make(buffer={"max_per_question": 1}), {"q": 4}, rows=3)
    policy.plan(2, fresh())
    finish(policy, [])
    metrics = policy.metrics(1)
    assert metrics["evicted/per_question"] == 2
    assert metrics["buffer_trajectories"] == 1


def test_without_a_share_questions_still_retire_and_none_is_drawn():
    policy = make(rho=0.0)
    finish(policy, [Group("easy", rewards(K)), Group("mixed", rewards(4))])
    assert policy.metrics(1)["newly_retired"] == 1
    assert policy.store.is_retired("easy")
    assert planned(policy.plan(8, fresh())) == []
    assert policy.metrics(1)["newly_retired"] == 0  # a new step's report


# ---- state


def run_step(policy, step: int, world: np.random.Generator, loader: Loader) -> list:
    """A step of a trainer with made-up rollouts; returns its plan and what joined."""
    slots = policy.plan(12, loader)
    groups = [
        Group(slot.question, rewards(int(world.integers(K)), of=slot.rollouts), planned=slot.planned) for slot in slots
    ]
    tools = Lent(entropy=lambda t: float(world.random()), ids=lambda i, j: world.integers(1000, size=4).tolist()).tools
    picked = []
    for i, (trajectory,) in policy.inject(groups, tools, step).items():
        groups[i].joined.append(trajectory)
        picked.append((groups[i].question, trajectory.row, trajectory.token_ids.tolist()))
    policy.finish(groups, tools, step, 0.5)
    return [slots, picked]


@pytest.mark.parametrize("rank", ["lowest_entropy", "random"])
@pytest.mark.parametrize("weighting", ["gaussian", "uniform"])
def test_a_restored_policy_plans_and_selects_the_same_for_a_hundred_steps(rank, weighting, restored):
    values = {
        "seed": 11,
        "start_threshold": 0.3,
        "question": {"weighting": weighting},
        "rank": rank,
        "bookkeeping": {"review_interval": 5, "review_share": 0.5},
        "buffer": {"max_per_question": 6, "cooldown_steps": 1},
    }
    policy, world, loader = make(**values), np.random.default_rng(1), Loader([f"q{i}" for i in range(60)])
    for step in range(1, 30):
        run_step(policy, step, world, loader)
    state = json.loads(json.dumps(policy.state_dict()))
    store = restored(policy.store, policy.config.buffer)
    rest, at = world.bit_generator.state, loader.at
    following = [run_step(policy, step, world, loader) for step in range(30, 130)]
    assert sum(len(picked) for _, picked in following) > 300

    resumed = make(**values | {"seed": 12})  # the generator is restored, not seeded again
    assert not resumed.active
    resumed.load_state_dict(state, store)
    assert resumed.active
    world.bit_generator.state, loader.at = rest, at
    assert [run_step(resumed, step, world, loader) for step in range(30, 130)] == following
    assert resumed.metrics(129) == policy.metrics(129)


def test_state_before_the_start_is_resumed_as_not_started():
    policy = make(start_threshold=0.35)
    policy.plan(4, fresh())
    finish(policy, [], pass_rate=0.1)
    resumed = make(start_threshold=0.35)
    resumed.load_state_dict(json.loads(json.dumps(policy.state_dict())), policy.store)
    assert not resumed.active
    assert not planned(resumed.plan(4, fresh()))


# ---- whole histories


class Histories(RuleBasedStateMachine):
    """The policy against plain dictionaries that follow Alg. 1 to the letter."""

    @initialize(
        keep_unsolved=st.booleans(),
        retire=st.booleans(),
        fresh_only=st.booleans(),
        lower=st.integers(0, 2),
        upper=st.sampled_from([None, 3]),
        rho=st.sampled_from([0.0, 0.5, 1.0]),
        threshold=st.sampled_from([None, 0.4]),
    )
    def begin(self, keep_unsolved, retire, fresh_only, lower, upper, rho, threshold):
        self.size, self.step, self.rho = 4, 0, rho
        self.bookkeeping = BookkeepingConfig(
            keep_unsolved=keep_unsolved, retire=retire, fresh_only=fresh_only, lower=lower, upper=upper
        )
        config = ExGRPOConfig(rho=rho, start_threshold=threshold, bookkeeping=self.bookkeeping)
        self.policy = make_policy(config, self.size)
        self.started, self.threshold = threshold is None, threshold
        self.counts, self.retired, self.stored = {}, set(), defaultdict(list)
        self.loader = Loader("abcdefgh")

    def eligible(self):
        return {q for q, k in self.counts.items() if 1 <= k < self.size and self.stored[q] and q not in self.retired}

    def settle(self, question, fresh, past):
        """Positions of fresh successes to store, by the words of the method."""
        if not self.started or len(fresh) + (past is not None) != self.size or question in self.retired:
            return []
        s = sum(fresh) if past is None else sum(fresh) + past
        if self.bookkeeping.fresh_only and past is not None:
            s = round(sum(fresh) * self.size / len(fresh))
            s = min(max(s, 1), self.size - 1) if 0 < sum(fresh) < len(fresh) else s
        if s == self.size:
            if self.bookkeeping.retire:
                self.retired.add(question)
                self.counts.pop(question, None)
                self.stored.pop(question, None)
            elif question in self.counts:
                self.counts[question] = 0
            return []
        if self.bookkeeping.lower < s <= (self.bookkeeping.upper or self.size - 1):
            self.counts[question] = s
            return [i for i, r in enumerate(fresh) if r]
        if s == 0 and not self.bookkeeping.keep_unsolved and question in self.counts:
            self.counts[question] = 0
        return []

    @rule(data=st.data(), batch=st.integers(1, 6), rate=st.sampled_from([0.2, 0.6]))
    def train(self, data, batch, rate):
        self.step += 1
        slots = self.planned(batch)
        groups = [self.rolled_out(slot, data) for slot in slots if data.draw(st.integers(0, 9)) or not slot.planned]
        self.inject(groups, data)
        joined = [g.joined[0].reward if g.joined else None for g in groups]
        expected = {
            i: found for i, g in enumerate(groups) if (found := self.settle(g.question, g.fresh_rewards, joined[i]))
        }
        pairs = st.tuples(st.integers(0, 3), st.integers(0, 3))
        ids = {(i, j): data.draw(pairs) for i, members in expected.items() for j in members}
        for (i, _), answer in ids.items():
            if answer not in self.stored[groups[i].question]:
                self.stored[groups[i].question].append(answer)
        read = finish(self.policy, groups, self.step, rate, ids=lambda i, j: ids[i, j])
        assert read.members == list(ids)
        self.started |= self.threshold is not None and rate > self.threshold
        assert self.policy.active == self.started

    def planned(self, batch):
        """A plan of distinct questions, as many of them stored as the share and the buckets allow."""
        eligible = self.eligible()
        slots = self.policy.plan(batch, self.loader)
        questions = [slot.question for slot in slots]
        wanted = math.floor(self.rho * batch) if self.started else 0
        assert len(set(questions)) == len(slots) == batch
        assert len(planned(slots)) == min(wanted, len(eligible))
        assert set(planned(slots)) <= eligible
        unretired = set("abcdefgh") - self.retired
        assert set(questions) <= unretired or len(unretired) < batch
        return slots

    def rolled_out(self, slot, data):
        size = max(1, slot.rollouts - (data.draw(st.integers(0, 4)) == 0))  # one that fails, now and then
        fresh = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=size, max_size=size))
        return Group(slot.question, fresh, planned=slot.planned)

    def inject(self, groups, data):
        """The stored trajectory of lowest entropy joins each planned group; ties go to the one stored first."""
        entropy = defaultdict(lambda: data.draw(st.integers(0, 3)))
        tools = Lent(entropy=lambda t: float(entropy[t.question, tuple(t.token_ids.tolist())]))
        joined = self.policy.inject(groups, tools.tools, self.step)
        assert set(joined) == {i for i, group in enumerate(groups) if group.planned}
        for i, (trajectory,) in joined.items():
            question = groups[i].question
            best = min(self.stored[question], key=lambda ids: entropy[question, ids])
            assert (trajectory.question, tuple(trajectory.token_ids.tolist())) == (question, best)
            groups[i].joined.append(trajectory)

    @invariant()
    def model_agrees(self):
        if not hasattr(self, "policy"):
            return
        store = self.policy.store
        assert set(store.retired) == self.retired
        for question in "abcdefgh":
            assert store.latest_count(question) == self.counts.get(question)
            found = [tuple(store.trajectory(row).token_ids.tolist()) for row in store.rows(question)]
            assert found == self.stored.get(question, [])
        by_count = [sum(self.counts[q] == k for q in self.eligible()) for k in range(self.size + 1)]
        assert store.bucket_sizes().tolist() == by_count


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)
TestHistories = Histories.TestCase
