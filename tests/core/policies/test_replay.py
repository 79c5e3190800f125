"""The replay manager: a step at a time by hand, and whole histories against a model in plain dictionaries."""

import json
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from recipe.exgrpo.core.buffer import ExperienceBuffer, Response
from recipe.exgrpo.core.config import BookkeepingConfig, BufferConfig, ExGRPOConfig, TrajectoryConfig
from recipe.exgrpo.core.policies.replay import METRIC_NAMES, Group, ReplayManager
from recipe.exgrpo.core.selection import Scores

K = 8
FROM_THE_START = None


def manager(books=None, select="lowest_entropy", **config) -> ReplayManager:
    config = {"start_threshold": FROM_THE_START, **config}
    books = BookkeepingConfig(**(books or {}))
    return ReplayManager(ExGRPOConfig(bookkeeping=books, trajectory=TrajectoryConfig(select), **config), K)


def rewards(successes: int, of: int = K) -> list[float]:
    return [1.0] * successes + [0.0] * (of - successes)


def stored(replay: ReplayManager, counts: dict[str, int], rows: int = 1) -> ReplayManager:
    """Put questions with `rows` trajectories of their own into the buffer."""
    for i, (question, count) in enumerate(counts.items()):
        replay.buffer.record(question, count)
        for j in range(rows):
            replay.buffer.add(question, Response([100 * i + j, 7], [-0.5, -1.0]), 1.0, step=j)
    return replay


def counts_after(replay: ReplayManager, group: Group) -> tuple[int | None, bool, list[int]]:
    """(latest count, retired, positions of fresh rollouts to store) after grading one group."""
    to_store = replay.grade([group])
    return replay.buffer.latest_count(group.question), replay.buffer.is_retired(group.question), to_store.get(0, [])


# ---- delayed start


def test_replay_and_collection_begin_on_the_step_after_the_threshold_is_exceeded():
    replay = manager(start_threshold=0.35)
    seen = []
    for step, rate in enumerate([0.2, 0.35, 0.5, 0.0, 0.0], start=1):
        planned = replay.plan(4)
        to_store = replay.grade([Group(f"q{step}", rewards(3)), Group(f"solved{step}", rewards(K))])
        for position, members in to_store.items():
            for member in members:
                replay.store(f"q{step}", [step, position, member], [-1.0] * 3, 1.0, step)
        replay.finish_step(step, rate)
        metrics = replay.metrics(step)
        seen.append((metrics["replay_active"], len(planned), metrics["added"], metrics["newly_retired"]))
    # 0.5 is the first rate above 0.35: collection begins in step 4, and what it stored is replayed in step 5.
    assert seen == [(0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0), (1, 0, 3, 1), (1, 1, 3, 1)]


def test_without_a_threshold_the_first_step_collects():
    replay = manager()
    replay.plan(4)
    assert replay.active
    assert counts_after(replay, Group("q", rewards(2))) == (2, False, [0, 1])


@pytest.mark.parametrize("books", [{}, {"review_interval": 1, "review_share": 1.0}])
def test_all_metrics_exist_and_are_zero_before_replay(books):
    replay = manager(books, start_threshold=0.35)
    assert replay.plan(4) == []
    replay.grade([Group("a", rewards(K)), Group("b", rewards(3)), Group("c", [1.0])])
    replay.finish_step(1, 0.1)
    metrics = replay.metrics(1)
    assert set(METRIC_NAMES) <= set(metrics)
    assert {f"bucket/{k}" for k in range(1, K)} <= set(metrics)
    assert set(metrics.values()) == {0.0}


# ---- planning


@pytest.mark.parametrize(
    ("rho", "batch", "eligible", "planned"),
    [
        (0.5, 8, 20, 4),
        (0.5, 7, 20, 3),
        (0.25, 8, 20, 2),
        (0.1, 8, 20, 0),
        (1.0, 8, 20, 8),
        (0.5, 8, 3, 3),
        (0.0, 8, 9, 0),
    ],
)
def test_a_plan_has_floor_rho_b_questions_or_all_that_are_eligible(rho, batch, eligible, planned):
    replay = stored(manager(rho=rho), {f"q{i}": 1 + i % (K - 1) for i in range(eligible)})
    questions = replay.plan(batch)
    assert len(questions) == len(set(questions)) == planned
    assert replay.report.planned == planned


def test_before_replay_starts_a_filled_buffer_is_left_alone():
    replay = stored(manager(start_threshold=0.35, rho=1.0), {"q": 4})
    assert replay.plan(4) == []
    replay.finish_step(1, 0.5)
    assert replay.plan(4) == ["q"]


def test_retired_unsolved_and_empty_questions_are_not_planned():
    replay = stored(manager(rho=1.0), {"easy": 3, "hard": 3, "live": 5})
    replay.grade([Group("easy", rewards(K)), Group("hard", rewards(0)), Group("new", rewards(1))])
    assert replay.plan(10) == ["live"]  # "new" has a count and nothing stored yet


# ---- book-keeping


@pytest.mark.parametrize(
    ("group", "outcome"),
    [
        (Group("q", rewards(0)), (0, False, [])),
        (Group("q", rewards(1)), (1, False, [0])),
        (Group("q", [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]), (2, False, [1, 4])),
        (Group("q", rewards(K - 1)), (K - 1, False, list(range(K - 1)))),
        (Group("q", rewards(K)), (None, True, [])),
        # The replayed success counts (Alg. 1) and is never stored again: positions are those of fresh rollouts.
        (Group("q", rewards(0, of=K - 1), 1.0), (1, False, [])),
        (Group("q", rewards(3, of=K - 1), 1.0), (4, False, [0, 1, 2])),
        (Group("q", rewards(K - 1, of=K - 1), 1.0), (None, True, [])),
        (Group("q", rewards(3, of=K - 1), 0.0), (3, False, [0, 1, 2])),
        # Rewards other than 0 and 1: above the threshold is a success.
        (Group("q", [0.5, 0.51, -1.0, 2.0, 0.0, 0.0, 0.0, 0.0]), (2, False, [1, 3])),
    ],
    ids=str,
)
def test_outcomes_of_a_group(group, outcome):
    assert counts_after(stored(manager(), {"q": 4}), group) == outcome


@pytest.mark.parametrize(("group", "outcome"), [(rewards(0), (None, False, [])), (rewards(3), (3, False, [0, 1, 2]))])
def test_a_question_never_solved_is_not_entered_into_the_books(group, outcome):
    assert counts_after(manager(), Group("new", group)) == outcome


@pytest.mark.parametrize("size", [1, 3, K - 1, K + 1])
@pytest.mark.parametrize("replayed", [None, 1.0])
def test_a_partial_group_changes_nothing(size, replayed):
    fresh = size - (replayed is not None)
    for successes in {0, fresh}:
        replay = stored(manager(), {"q": 4})
        assert counts_after(replay, Group("q", rewards(successes, of=fresh), replayed)) == (4, False, [])
        assert len(replay.buffer.rows("q")) == 1
        assert replay.report.partial_groups == 1


def test_all_solved_retires_for_good():
    replay = stored(manager(), {"q": 4}, rows=3)
    assert counts_after(replay, Group("q", rewards(K))) == (None, True, [])
    assert len(replay.buffer.rows("q")) == 0
    # Drawn all the same, as when every question is retired: nothing is stored, nothing counted twice.
    assert counts_after(replay, Group("q", rewards(3))) == (None, True, [])
    assert counts_after(replay, Group("q", rewards(K))) == (None, True, [])
    assert replay.report.retired == 1
    assert replay.plan(10) == []


def test_all_solved_without_retirement_leaves_the_buckets_and_may_come_back():
    replay = stored(manager({"retire": False}, rho=1.0), {"q": 4})
    assert counts_after(replay, Group("q", rewards(K))) == (0, False, [])
    assert replay.plan(10) == []
    assert len(replay.buffer.rows("q")) == 1
    replay.grade([Group("q", rewards(5))])
    assert replay.plan(10) == ["q"]
    assert counts_after(replay, Group("new", rewards(K))) == (None, False, [])


def test_none_solved_benches_a_question_until_it_is_solved_again():
    replay = stored(manager(rho=1.0), {"q": 4})
    assert counts_after(replay, Group("q", rewards(0))) == (0, False, [])
    assert replay.plan(10) == []
    replay.grade([Group("q", rewards(2))])
    assert replay.plan(10) == ["q"]


def test_none_solved_changes_nothing_as_in_the_released_code():
    replay = stored(manager({"keep_unsolved": True}, rho=1.0), {"q": 4})
    assert counts_after(replay, Group("q", rewards(0))) == (4, False, [])
    assert replay.plan(10) == ["q"]


@pytest.mark.parametrize(
    ("successes", "replayed", "outcome"),
    [
        (0, 1.0, (0, False, [])),  # only the past solved it
        (1, 1.0, (1, False, [0])),  # round(8/7)
        (3, 1.0, (3, False, [0, 1, 2])),  # round(24/7)
        (4, 1.0, (5, False, [0, 1, 2, 3])),  # round(32/7)
        (6, 1.0, (7, False, [0, 1, 2, 3, 4, 5])),
        (7, 1.0, (None, True, [])),
        (3, None, (3, False, [0, 1, 2])),
    ],
)
def test_fresh_only_counts_fresh_rollouts_scaled_to_k(successes, replayed, outcome):
    replay = stored(manager({"fresh_only": True}), {"q": 4})
    fresh = K - (replayed is not None)
    assert counts_after(replay, Group("q", rewards(successes, of=fresh), replayed)) == outcome


@pytest.mark.parametrize("group_size", [2, 3, 5, 64])
def test_fresh_only_reaches_the_ends_only_at_the_ends(group_size):
    replay = ReplayManager(ExGRPOConfig(bookkeeping=BookkeepingConfig(fresh_only=True)), group_size)
    tried = group_size - 1
    scaled = [replay.successes(Group("q", rewards(s, of=tried), 1.0)) for s in range(tried + 1)]
    assert scaled[0] == 0
    assert scaled[-1] == group_size
    assert all(1 <= s < group_size for s in scaled[1:-1])
    assert scaled == sorted(scaled)


@pytest.mark.parametrize(
    ("successes", "count", "kept"),
    [(1, 4, False), (2, 4, False), (3, 3, True), (5, 5, True), (6, 4, False), (7, 4, False)],
)
def test_only_counts_above_lower_and_up_to_upper_are_booked(successes, count, kept):
    replay = stored(manager({"lower": 2, "upper": 5}), {"q": 4})
    expected = list(range(successes)) if kept else []
    assert counts_after(replay, Group("q", rewards(successes))) == (count, False, expected)


def test_bounds_do_not_hide_all_solved_or_none_solved():
    replay = stored(manager({"lower": 2, "upper": 5}), {"easy": 4, "hard": 4})
    assert counts_after(replay, Group("easy", rewards(K))) == (None, True, [])
    assert counts_after(replay, Group("hard", rewards(0))) == (0, False, [])


def test_positions_belong_to_their_groups():
    groups = [
        Group("a", rewards(0)),
        Group("b", rewards(2)),
        Group("c", [1.0]),
        Group("d", rewards(K)),
        Group("e", rewards(1)),
    ]
    replay = manager()
    assert replay.grade(groups) == {1: [0, 1], 4: [0]}
    assert (replay.report.retired, replay.report.partial_groups) == (1, 1)


def test_an_identical_trajectory_is_stored_once():
    replay = manager()
    replay.plan(4)
    for ids in ([1, 2], [1, 2], [1, 3], [1, 2]):
        replay.store("q", ids, [-1.0, -1.0], 1.0, step=1)
    assert [replay.buffer.trajectory(row).token_ids.tolist() for row in replay.buffer.rows("q")] == [[1, 2], [1, 3]]
    assert replay.report.added == 2


def test_groups_of_one_rollout_are_refused():
    with pytest.raises(ValueError, match=r"actor_rollout_ref\.rollout\.n"):
        ReplayManager(ExGRPOConfig(), 1)


# ---- selection and replay


def test_selection_takes_the_lowest_entropy_and_remembers_all_scores():
    replay = stored(manager(), {"q": 4}, rows=4)
    chosen = replay.select("q", Scores(np.array([0.9, 0.3, 0.1, 0.4]), np.zeros(4)))
    assert chosen.row == replay.buffer.rows("q")[2]
    assert chosen.token_ids.tolist() == [2, 7]
    assert chosen.entropy == pytest.approx(0.1)
    found = [replay.buffer.trajectory(row).entropy for row in replay.buffer.rows("q")]
    assert found == pytest.approx([0.9, 0.3, 0.1, 0.4])
    assert replay.report.scored == 4


@pytest.mark.parametrize(("select", "needs"), [("lowest_entropy", True), ("random", False), ("newest", False)])
def test_scores_are_asked_for_only_by_rules_that_use_them(select, needs):
    replay = stored(manager(select=select), {"q": 4}, rows=3)
    assert replay.needs_scores == needs
    if not needs:
        assert replay.select("q").row in replay.buffer.rows("q")
        assert replay.report.scored == 0


def test_replayed_trajectories_are_counted_with_age_reuse_and_entropy():
    replay = stored(manager(rho=1.0), {"a": 4, "b": 5}, rows=2)
    assert len(replay.plan(3)) == 2
    first = replay.select("a", Scores(np.array([0.2, 0.6]), np.zeros(2)))  # born in step 0
    second = replay.select("b", Scores(np.array([0.6, 0.4]), np.zeros(2)))  # born in step 1
    replay.replayed(first, step=9)
    replay.replayed(second, step=9)
    replay.finish_step(9, 0.5)
    metrics = replay.metrics(9)
    expected = {
        "planned_questions": 2,
        "replayed_questions": 2,
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
    replay.plan(3)
    replay.replayed(replay.select("a", Scores(np.array([0.2, 0.6]), np.zeros(2))), step=10)
    assert replay.metrics(10)["reuse_max"] == 2
    assert replay.metrics(10)["skipped_replays"] == 1


def test_a_report_covers_one_step():
    replay = stored(manager(rho=1.0), {"a": 4})
    replay.plan(2)
    replay.replayed(replay.select("a", Scores(np.array([0.2]), np.zeros(1))), step=1)
    replay.grade([Group("b", rewards(K)), Group("c", [1.0])])
    replay.finish_step(1, 0.5)
    assert replay.metrics(1)["replayed_questions"] == 1
    replay.buffer.retire("a")
    replay.plan(2)
    replay.finish_step(2, 0.5)
    metrics = replay.metrics(2)
    per_step = ("replayed_questions", "planned_questions", "candidates_scored", "newly_retired", "partial_groups")
    assert {name: metrics[name] for name in per_step} == dict.fromkeys(per_step, 0)
    assert metrics["replay_active"] == 1.0


def test_a_score_that_is_not_finite_does_not_spoil_the_metrics():
    replay = stored(manager(), {"q": 4}, rows=2)
    replay.replayed(replay.select("q", Scores(np.array([np.nan, np.nan]), np.zeros(2))), step=1)
    assert replay.metrics(1)["selected_entropy_mean"] == 0.0


def test_bounds_of_the_buffer_are_enforced_at_the_end_of_a_step():
    replay = stored(manager(buffer=BufferConfig(max_per_question=1)), {"q": 4}, rows=3)
    replay.plan(2)
    replay.finish_step(1, 0.5)
    metrics = replay.metrics(1)
    assert metrics["evicted/per_question"] == 2
    assert metrics["buffer_trajectories"] == 1


# ---- retired review (Table 7)


def retired_after(books, steps, start_threshold=FROM_THE_START):
    replay = manager(books, start_threshold=start_threshold)
    for i in range(45):
        replay.buffer.retire(f"q{i}")
    for step in range(1, steps + 1):
        replay.plan(4)
        replay.finish_step(step, 0.0)
        yield len(replay.buffer.retired)


def test_review_puts_a_tenth_of_the_retired_back_every_interval():
    sizes = list(retired_after({"review_interval": 25, "review_share": 0.1}, steps=50))
    assert sizes == [45] * 24 + [40] * 25 + [36]  # ceil(4.5), ceil(4.0)


@pytest.mark.parametrize("books", [{}, {"review_interval": 0, "review_share": 1.0}])
def test_review_is_off_by_default(books):
    assert set(retired_after(books, steps=50)) == {45}


def test_review_waits_for_replay():
    assert set(retired_after({"review_interval": 1, "review_share": 1.0}, 3, start_threshold=0.5)) == {45}


def test_review_of_nothing_and_of_everything():
    replay = manager({"review_interval": 1, "review_share": 1.0})
    replay.finish_step(1, 0.0)
    for i in range(3):
        replay.buffer.retire(f"q{i}")
    replay.finish_step(2, 0.0)
    assert replay.buffer.retired == []


def test_a_reviewed_question_can_be_stored_again():
    replay = manager({"review_interval": 1, "review_share": 1.0})
    replay.buffer.retire("q")
    replay.finish_step(1, 0.0)
    assert counts_after(replay, Group("q", rewards(3))) == (3, False, [0, 1, 2])


# ---- state


def run_step(replay: ReplayManager, step: int, world: np.random.Generator) -> list:
    """A step of the trainer with a made-up policy; returns what was planned and selected."""
    planned = replay.plan(12)
    groups, picked = [], []
    for question in planned:
        rows = replay.buffer.rows(question)
        scores = Scores(world.random(len(rows)), world.random(len(rows))) if replay.needs_scores else None
        trajectory = replay.select(question, scores)
        replay.replayed(trajectory, step)
        picked.append((question, trajectory.row, trajectory.token_ids.tolist()))
        groups.append(Group(question, rewards(int(world.integers(K)), of=K - 1), trajectory.reward))
    fresh = [f"q{i}" for i in world.choice(60, 12 - len(planned), replace=False)]
    groups += [Group(question, rewards(int(world.integers(K)))) for question in fresh if question not in planned]
    for position, members in replay.grade(groups).items():
        for _ in members:
            ids = world.integers(1000, size=4)
            replay.store(groups[position].question, ids, -world.random(4), 1.0, step)
    replay.finish_step(step, 0.5)
    return picked


@pytest.mark.parametrize("select", ["lowest_entropy", "random"])
@pytest.mark.parametrize("weighting", ["gaussian", "uniform"])
def test_a_restored_manager_plans_and_selects_the_same_for_a_hundred_steps(select, weighting):
    config = ExGRPOConfig.from_mapping(
        {
            "seed": 11,
            "start_threshold": 0.3,
            "question": {"weighting": weighting},
            "trajectory": {"select": select},
            "bookkeeping": {"review_interval": 5, "review_share": 0.5},
            "buffer": {"max_per_question": 6, "cooldown_steps": 1},
        }
    )
    replay = ReplayManager(config, K)
    world = np.random.default_rng(1)
    for step in range(1, 30):
        run_step(replay, step, world)
    state = json.loads(json.dumps(replay.state()))
    arrays, meta = replay.buffer.state()
    rest = world.bit_generator.state
    following = [run_step(replay, step, world) for step in range(30, 130)]
    assert sum(map(len, following)) > 300

    resumed = ReplayManager(config, K)
    assert not resumed.active
    resumed.load_state(state, ExperienceBuffer.from_state(arrays, json.loads(json.dumps(meta)), config.buffer))
    assert resumed.active
    world.bit_generator.state = rest
    assert [run_step(resumed, step, world) for step in range(30, 130)] == following
    other_metrics, metrics = resumed.metrics(129), replay.metrics(129)
    assert other_metrics == metrics


def test_state_before_the_start_is_resumed_as_not_started():
    replay = manager(start_threshold=0.35)
    replay.plan(4)
    replay.finish_step(1, 0.1)
    resumed = manager(start_threshold=0.35)
    resumed.load_state(json.loads(json.dumps(replay.state())), replay.buffer)
    assert not resumed.active
    assert not resumed.plan(4)


def test_two_seeds_plan_differently():
    counts = {f"q{i}": 1 + i % (K - 1) for i in range(40)}
    plans = [stored(manager(seed=seed), counts).plan(16) for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


# ---- whole histories


class Books(RuleBasedStateMachine):
    """The manager against plain dictionaries that follow method.md step 7 to the letter."""

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
        self.books = BookkeepingConfig(
            keep_unsolved=keep_unsolved, retire=retire, fresh_only=fresh_only, lower=lower, upper=upper
        )
        config = ExGRPOConfig(rho=rho, start_threshold=threshold, bookkeeping=self.books)
        self.replay = ReplayManager(config, self.size)
        self.started, self.threshold = threshold is None, threshold
        self.counts, self.retired, self.stored = {}, set(), defaultdict(list)

    def eligible(self):
        return {q for q, k in self.counts.items() if 1 <= k < self.size and self.stored[q] and q not in self.retired}

    def settle(self, question, fresh, past):
        """Positions of fresh successes to store, by the words of the method."""
        if not self.started or len(fresh) + (past is not None) != self.size or question in self.retired:
            return []
        s = sum(fresh) if past is None else sum(fresh) + past
        if self.books.fresh_only and past is not None:
            s = round(sum(fresh) * self.size / len(fresh))
            s = min(max(s, 1), self.size - 1) if 0 < sum(fresh) < len(fresh) else s
        if s == self.size:
            if self.books.retire:
                self.retired.add(question)
                self.counts.pop(question, None)
                self.stored.pop(question, None)
            elif question in self.counts:
                self.counts[question] = 0
            return []
        if self.books.lower < s <= (self.books.upper or self.size - 1):
            self.counts[question] = s
            return [i for i, r in enumerate(fresh) if r]
        if s == 0 and not self.books.keep_unsolved and question in self.counts:
            self.counts[question] = 0
        return []

    @rule(data=st.data(), batch=st.integers(1, 6), rate=st.sampled_from([0.2, 0.6]))
    def train(self, data, batch, rate):
        self.step += 1
        eligible = self.eligible()
        planned = self.replay.plan(batch)
        wanted = math.floor(self.rho * batch) if self.started else 0
        assert len(set(planned)) == len(planned) == min(wanted, len(eligible))
        assert set(planned) <= eligible
        pool = [q for q in "abcdefgh" if q not in planned and (q not in self.retired or data.draw(st.booleans()))]
        groups = []
        for question in [*planned, *pool[: batch - len(planned)]]:
            past = None
            if question in planned:
                trajectory = self.replay.select(question, self.scores(question, data))
                assert tuple(trajectory.token_ids.tolist()) == self.best
                self.replay.replayed(trajectory, self.step)
                past = trajectory.reward
            size = self.size - (past is not None) - (data.draw(st.integers(0, 4)) == 0)
            groups.append(
                Group(question, data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=size, max_size=size)), past)
            )
        expected = {i: self.settle(g.question, g.fresh_rewards, g.replayed_reward) for i, g in enumerate(groups)}
        to_store = self.replay.grade(groups)
        assert {i: members for i, members in to_store.items() if members} == {i: m for i, m in expected.items() if m}
        self.store(groups, to_store, data)
        self.replay.finish_step(self.step, rate)
        self.started |= self.threshold is not None and rate > self.threshold
        assert self.replay.active == self.started

    def scores(self, question, data):
        n = len(self.stored[question])
        entropy = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
        self.best = self.stored[question][entropy.index(min(entropy))]
        return Scores(np.array(entropy, float), np.zeros(n))

    def store(self, groups, to_store, data):
        for position, members in to_store.items():
            question = groups[position].question
            for _ in members:
                ids = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
                if ids not in self.stored[question]:
                    self.stored[question].append(ids)
                self.replay.store(question, np.array(ids), [-1.0, -1.0], 1.0, self.step)

    @invariant()
    def books_agree(self):
        if not hasattr(self, "replay"):
            return
        buffer = self.replay.buffer
        assert set(buffer.retired) == self.retired
        for question in "abcdefgh":
            assert buffer.latest_count(question) == self.counts.get(question)
            found = [tuple(buffer.trajectory(row).token_ids.tolist()) for row in buffer.rows(question)]
            assert found == self.stored.get(question, [])
        by_count = [sum(self.counts[q] == k for q in self.eligible()) for k in range(self.size + 1)]
        assert buffer.bucket_sizes().tolist() == by_count


Books.TestCase.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)
TestBooks = Books.TestCase
