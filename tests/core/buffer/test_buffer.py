"""The experience buffer: eligibility, drawing, de-duplication, bounds, cooldown, memory and state."""

import logging
import math
import struct
from collections import Counter
from hashlib import blake2b

import numpy as np
import pytest

from recipe.exgrpo.core.buffer import ExperienceBuffer, Origin, Provenance, Response, prompt_hash
from recipe.exgrpo.core.buffer.trajectories import ROW_BYTES
from recipe.exgrpo.core.config import BufferConfig

K = 8
ARRAYS = ("token_ids", "log_probs", "mask", "prompt_ids")


def make_buffer(questions=0, rows=1, length=5, **config):
    buffer = ExperienceBuffer(K, BufferConfig(**config), segment_tokens=256)
    for i in range(questions):
        buffer.record(f"q{i}", 1 + i % (K - 1))
        for j in range(rows):
            buffer.add(f"q{i}", Response(np.arange(length) + i * rows + j, -np.ones(length)), 1.0, step=j)
    return buffer


def ids_of(buffer, question):
    return [buffer.trajectory(row).token_ids.tolist() for row in buffer.rows(question)]


def assert_same(a, b):
    """Equal in everything observable, the next draws included."""
    assert a.stats(9) == {**b.stats(9), "allocated_bytes": a.stats(9)["allocated_bytes"]}
    assert a.retired == b.retired
    assert sorted(a.questions()) == sorted(b.questions())
    for question in a.questions():
        assert a.latest_count(question) == b.latest_count(question)
        np.testing.assert_array_equal(a.rows(question), b.rows(question))
        for row in a.rows(question):
            x, y = a.trajectory(row), b.trajectory(row)
            np.testing.assert_array_equal(x.token_ids, y.token_ids)
            np.testing.assert_array_equal(x.log_probs, y.log_probs)
            np.testing.assert_array_equal(x.mask, y.mask)
            np.testing.assert_array_equal(x.prompt_ids, y.prompt_ids)
            np.testing.assert_equal(*({k: v for k, v in vars(t).items() if k not in ARRAYS} for t in (x, y)))
    for k in range(1, a.group_size):
        n = int(a.bucket_sizes()[k])
        assert a.draw(k, n, np.random.default_rng(3)) == b.draw(k, n, np.random.default_rng(3))


def test_trajectory_comes_back_as_stored():
    buffer = make_buffer()
    ids, log_probs = np.array([5, 0, 2**31 - 1]), np.array([-0.25, 0.0, -17.5])
    assert buffer.add("q", Response(ids, log_probs), 1.0, step=7)
    found = buffer.trajectory(buffer.rows("q")[0])
    assert found.token_ids.dtype == np.int32
    assert found.log_probs.dtype == np.float32
    np.testing.assert_array_equal(found.token_ids, ids)
    np.testing.assert_array_equal(found.log_probs, log_probs.astype(np.float32))
    assert (found.question, found.reward, found.birth_step, found.use_count) == ("q", 1.0, 7, 0)
    assert math.isnan(found.entropy)


def test_what_a_trajectory_answers_and_where_it_comes_from():
    buffer = make_buffer()
    buffer.origin = Origin("rollout", "template", 0.6)
    buffer.add("q", Response([5, 6], [-1.0, -2.0], prompt_ids=[9, 8, 7]), 1.0, 3)
    group = buffer.new_group()
    given = Provenance(group, successes=3, size=8, advantage=0.625)
    buffer.origin = Origin("import")
    buffer.add("q", Response([5, 7], [-1.0, -2.0], prompt_ids=[9, 8, 7]), 0.0, 4, provenance=given, keep_prompt=True)
    first, second = (buffer.trajectory(row) for row in buffer.rows("q"))
    assert (first.origin, second.origin) == (Origin("rollout", "template", 0.6), Origin("import"))
    assert (first.provenance, second.provenance) == (Provenance(), given)
    assert first.prompt_ids.tolist() == []
    assert second.prompt_ids.tolist() == [9, 8, 7]
    assert second.token_ids.tolist() == [5, 7]
    assert first.prompt_hash == second.prompt_hash == prompt_hash([9, 8, 7]) != prompt_hash([9, 8])
    assert buffer.new_group() == group + 1
    with pytest.raises(ValueError, match=r"question 'q'.*new_group"):
        buffer.add("q", Response([1], [-1.0]), 1.0, 4, provenance=Provenance(group=group + 2))


def test_prompt_hash_is_a_function_of_the_ids_alone():
    """64-bit BLAKE2b of the ids as little-endian int32, whatever they come as."""
    expected = int.from_bytes(blake2b(struct.pack("<2i", 1, 2), digest_size=8).digest(), "little")
    assert prompt_hash([1, 2]) == prompt_hash(np.array([1, 2], np.int64)) == expected
    assert prompt_hash(None) == prompt_hash([]) == 0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_tokens_that_the_model_did_not_write_are_masked(dtype, restored):
    buffer = make_buffer(log_prob_dtype=dtype)
    mask = [True, False, True]
    junk = [-0.5, math.nan, -0.25]  # outside the mask nothing is checked and nothing kept
    buffer.add("q", Response([1, 2, 3], junk, mask=mask, prompt_ids=[4]), 1.0, 0, keep_prompt=True)
    buffer.add("q", Response([1, 2], [-1.0, -1.0]), 1.0, 0)
    for b in (buffer, restored(buffer, buffer.config)):
        masked, plain = (b.trajectory(row) for row in b.rows("q"))
        assert masked.mask.tolist() == mask
        assert masked.log_probs.tolist() == [-0.5, 0.0, -0.25]
        assert masked.log_probs.dtype == np.float32
        assert plain.mask.all()
    with pytest.raises(ValueError, match="span nan"):
        buffer.add("q", Response([1, 2, 9], junk, mask=[True, True, True]), 1.0, 0)
    for wrong in ([True], [False, False, False]):
        with pytest.raises(ValueError, match=r"question 'q'.*mask"):
            buffer.add("q", Response([1, 2, 9], junk, mask=wrong), 1.0, 0)


def test_ids_under_one_digest_are_told_apart_by_their_masks(monkeypatch):
    """The digest has the mask in it, and what it is of decides."""
    monkeypatch.setattr("recipe.exgrpo.core.buffer.experience.digest", lambda ids, mask: 7)
    buffer = make_buffer()
    for mask in (None, [True, False, True]):
        assert buffer.add("q", Response([1, 2, 3], [-1.0, -1.0, -1.0], mask), 1.0, 0)
        assert not buffer.add("q", Response([1, 2, 3], [-1.0, -1.0, -1.0], mask), 1.0, 0)
    found = [buffer.trajectory(row) for row in buffer.rows("q")]
    assert [(one.turns, one.tool_tokens) for one in found] == [(2, 0), (4, 1)]


def test_a_mask_costs_nothing_and_a_prompt_its_tokens():
    plain, masked = Response([1, 2], [-1, -1]), Response([1, 2], [-1, -1], [True, False])
    sizes = []
    for response in (plain, masked, Response([1, 2], [-1, -1], prompt_ids=[3])):
        buffer = make_buffer()
        buffer.add("q", response, 1.0, 0, keep_prompt=True)
        sizes.append(buffer.nbytes - ROW_BYTES)
    assert sizes == [16, 16, 24]


def test_duplicates_are_kept_where_asked_for():
    buffer = make_buffer()
    for _ in range(2):
        assert buffer.add("q", Response([1, 2], [-1.0, -1.0]), 1.0, 0, keep_duplicates=True)
    assert not buffer.add("q", Response([1, 2], [-1.0, -1.0]), 1.0, 0)
    assert ids_of(buffer, "q") == [[1, 2], [1, 2]]


def test_a_response_is_compared_without_its_prompt():
    buffer = make_buffer()
    assert buffer.add("q", Response([1, 2], [-1.0, -1.0], prompt_ids=[7, 8, 9]), 1.0, 0, keep_prompt=True)
    assert not buffer.add("q", Response([1, 2], [-1.0, -1.0]), 1.0, 0)


def test_candidates_are_columns_in_insertion_order():
    buffer = make_buffer()
    groups = [buffer.new_group() for _ in range(2)]
    for i, question in enumerate(["b", "a", "b"]):
        response = Response([i] * (i + 1), [-1.0] * (i + 1), prompt_ids=[1, 2])
        where = Provenance(groups[i // 2], successes=i, size=4, advantage=i / 4)
        buffer.add(question, response, float(i), step=10 + i, provenance=where, keep_prompt=i == 1)
    buffer.mark_scored([1], [0.5], [0.75], [0.1])
    buffer.mark_used([1, 2], step=12)
    found = buffer.candidates()
    assert len(found) == 3
    assert found.row.tolist() == [0, 1, 2]
    assert found.question[0] == found.question[2] != found.question[1]
    assert found.group.tolist() == [0, 0, 1]
    assert found.successes.tolist() == [0, 1, 2]
    assert found.group_size.tolist() == [4, 4, 4]
    assert found.advantage.tolist() == [0, 0.25, 0.5]
    assert found.reward.tolist() == [0, 1, 2]
    assert found.length.tolist() == [1, 2, 3]
    assert found.use_count.tolist() == [0, 1, 1]
    assert found.age(13).tolist() == [3, 2, 1]
    assert found.has_prompt.tolist() == [False, True, False]
    np.testing.assert_array_equal(found.entropy, np.float32([math.nan, 0.5, math.nan]))
    np.testing.assert_array_equal(found.nll, np.float32([math.nan, 0.75, math.nan]))
    np.testing.assert_array_equal(found.drift, np.float32([math.nan, 0.1, math.nan]))
    assert buffer.candidates([2, 0]).row.tolist() == [2, 0]
    assert found[found.reward > 0].row.tolist() == found[1:].row.tolist() == found[[1, 2]].row.tolist() == [1, 2]
    assert len(found[[]]) == len(buffer.candidates([])) == len(make_buffer().candidates()) == 0
    found.row[:] = 99  # the reader's own
    assert buffer.candidates().row.tolist() == [0, 1, 2]


def test_candidates_leave_out_what_is_gone():
    buffer = make_buffer(questions=3, rows=2)
    buffer.retire("q1")
    assert buffer.candidates().row.tolist() == [0, 1, 4, 5]
    with pytest.raises(KeyError, match="trajectory 2 is not in the buffer"):
        buffer.candidates([0, 2])


def test_dropped_trajectories_count_as_evicted_for_their_reason():
    buffer = make_buffer(questions=2, rows=2)
    assert buffer.drop([0, 1, 2], "reuse") == 3
    assert buffer.drop([], "age") == 0
    assert buffer.evicted == {"age": 0, "reuse": 3, "per_question": 0, "bytes": 0}
    assert buffer.candidates().row.tolist() == [3]
    assert buffer.bucket_sizes().sum() == 1
    assert buffer.latest_count("q0") == 1
    with pytest.raises(KeyError, match="not in the buffer"):
        buffer.drop([0], "age")
    with pytest.raises(ValueError, match="one of age, reuse"):
        buffer.drop([3], "boredom")


def test_rows_dropped_for_no_reason_are_not_evicted():
    buffer = make_buffer(questions=2, rows=2)
    assert buffer.drop_trajectories([1]) == 1
    assert buffer.drop_trajectories() == 3
    assert sum(buffer.evicted.values()) == 0
    assert buffer.latest_count("q0") == 1


def test_a_drawn_question_counts_a_use_of_each_trajectory_and_cools_down():
    """What `inject: false` needs: bounds and cooldown act although no trajectory enters the update."""
    buffer = make_buffer(questions=2, rows=3, cooldown_steps=1, max_reuse=1)
    buffer.mark_drawn("q1", step=4)
    buffer.mark_drawn("unknown", step=4)
    assert buffer.candidates().use_count.tolist() == [0, 0, 0, 1, 1, 1]
    assert buffer.bucket_sizes().tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert buffer.enforce_limits(4)["reuse"] == 3


def test_using_several_rows_cools_each_question_once():
    buffer = make_buffer(questions=3, rows=2, cooldown_steps=1)
    buffer.mark_used(np.array([1, 0, 4]), step=4)
    assert buffer.candidates().use_count.tolist() == [1, 1, 0, 0, 1, 0]
    assert buffer.stats(4)["cooling"] == 2
    with pytest.raises(KeyError, match="not in the buffer"):
        buffer.mark_used([2, 99], step=4)
    assert buffer.candidates().use_count.tolist() == [1, 1, 0, 0, 1, 0]


def test_trajectory_is_a_copy():
    buffer = make_buffer(questions=1)
    row = buffer.rows("q0")[0]
    buffer.trajectory(row).token_ids[:] = 99
    assert buffer.trajectory(row).token_ids[0] == 0


@pytest.mark.parametrize("order", ["add first", "record first"])
def test_eligible_needs_count_and_trajectory(order):
    buffer = make_buffer()
    steps = [lambda: buffer.add("q", Response([1], [-1.0]), 1.0, 0), lambda: buffer.record("q", 3)]
    for step in steps if order == "add first" else steps[::-1]:
        assert buffer.bucket_sizes().sum() == 0
        step()
    assert buffer.bucket_sizes().tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert buffer.draw(3, 1, np.random.default_rng(0)) == ["q"]


def test_zero_count_keeps_trajectories_but_not_eligibility():
    buffer = make_buffer(questions=1)
    buffer.record("q0", 0)
    assert buffer.bucket_sizes().sum() == 0
    assert len(buffer.rows("q0")) == 1
    buffer.record("q0", 5)
    assert buffer.bucket_sizes()[5] == 1


def test_only_the_latest_count_matters():
    buffer = make_buffer(questions=1)
    for count in (3, 7, 2, 2):
        buffer.record("q0", count)
    assert buffer.latest_count("q0") == 2
    assert buffer.bucket_sizes().tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("count", [-1, K, K + 1])
def test_record_refuses_counts_outside_range(count):
    with pytest.raises(ValueError, match=r"question 'q' must be in 0\.\.7"):
        make_buffer().record("q", count)


def test_retire_frees_and_unretire_starts_over():
    buffer = make_buffer(questions=3, rows=2)
    before = buffer.nbytes
    buffer.retire("q1")
    buffer.retire("q1")
    buffer.retire("never seen")
    assert buffer.retired == ["q1", "never seen"]
    assert buffer.is_retired("q1")
    assert not buffer.is_retired("q0")
    assert buffer.nbytes == before * 2 / 3
    assert buffer.latest_count("q1") is None
    assert len(buffer.rows("q1")) == 0
    for act in (lambda: buffer.record("q1", 1), lambda: buffer.add("q1", Response([1], [-1.0]), 1.0, 0)):
        with pytest.raises(ValueError, match="'q1' is retired"):
            act()
    buffer.unretire("q1")
    assert buffer.retired == ["never seen"]
    with pytest.raises(KeyError, match="not retired"):
        buffer.unretire("q1")
    buffer.record("q1", 4)
    assert buffer.bucket_sizes()[4] == 0
    assert buffer.add("q1", Response(np.arange(5) + 2, -np.ones(5)), 1.0, 5)
    assert buffer.bucket_sizes()[4] == 1


def test_discard_forgets_and_its_place_is_reused():
    buffer = make_buffer(questions=3, rows=2)
    buffer.retire("q2")
    buffer.discard("q0")
    buffer.discard("q2")
    buffer.discard("unknown")
    assert list(buffer.questions()) == ["q1"]
    assert buffer.retired == []
    buffer.record("new", 1)
    buffer.add("new", Response([1, 2], [-1, -1]), 1.0, 0)
    assert ids_of(buffer, "new") == [[1, 2]]
    assert buffer.stats(0)["questions"] == 2
    assert len(buffer._questions.names) == 3


def test_draw_is_uniform_without_replacement():
    buffer = make_buffer(questions=70)
    rng = np.random.default_rng(0)
    seen = Counter()
    for _ in range(3000):
        drawn = buffer.draw(4, 3, rng)
        assert len(set(drawn)) == 3
        seen.update(drawn)
    assert set(seen) == {f"q{i}" for i in range(70) if 1 + i % 7 == 4}
    assert all(abs(n - 900) < 5 * math.sqrt(900 * 0.7) for n in seen.values())


def test_draw_refuses_more_than_there_are():
    buffer = make_buffer(questions=7)
    assert buffer.draw(1, 0, np.random.default_rng(0)) == []
    with pytest.raises(ValueError, match="cannot draw 2 questions from bucket 1, which has 1"):
        buffer.draw(1, 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="bucket 9 does not exist"):
        buffer.draw(9, 0, np.random.default_rng(0))


def test_identical_trajectories_are_stored_once_per_question():
    buffer = make_buffer()
    assert buffer.add("a", Response([1, 2, 3], [-1.0, -1.0, -1.0]), 1.0, 0)
    assert not buffer.add("a", Response(np.array([1, 2, 3]), [-9.0, -9.0, -9.0]), 1.0, 5)
    assert buffer.add("a", Response([1, 2], [-1.0, -1.0]), 1.0, 0)
    assert buffer.add("b", Response([1, 2, 3], [-1.0, -1.0, -1.0]), 1.0, 0)
    assert ids_of(buffer, "a") == [[1, 2, 3], [1, 2]]
    assert buffer.trajectory(buffer.rows("a")[0]).log_probs[0] == -1.0


def test_equal_digests_of_different_ids_are_both_kept(monkeypatch):
    class Same:
        def __init__(self, data, digest_size):
            pass

        def digest(self):
            return b"\1" * 8

    monkeypatch.setattr("recipe.exgrpo.core.buffer.records.blake2b", Same)
    buffer = make_buffer()
    assert buffer.add("a", Response([1, 2], [-1.0, -1.0]), 1.0, 0)
    assert buffer.add("a", Response([1, 3], [-1.0, -1.0]), 1.0, 0)
    assert not buffer.add("a", Response([1, 2], [-1.0, -1.0]), 1.0, 0)


@pytest.mark.parametrize(
    ("ids", "log_probs", "reward"),
    [
        ([1, 2], [-1.0], 1.0),
        ([], [], 1.0),
        ([1.5], [-1.0], 1.0),
        ([[1]], [[-1.0]], 1.0),
        ([-1], [-1.0], 1.0),
        ([2**31], [-1.0], 1.0),
        ([1, 2], [-1.0, math.nan], 1.0),
        ([1, 2], [math.nan, -1.0], 1.0),
        ([1, 2], [-1.0, -math.inf], 1.0),
        ([1, 2], [-1.0, 0.5], 1.0),
        ([1], [-1.0], math.nan),
    ],
)
def test_nonsense_is_refused_with_the_question_named(ids, log_probs, reward):
    buffer = make_buffer()
    with pytest.raises(ValueError, match="question 'q'"):
        buffer.add("q", Response(ids, log_probs), reward, 0)
    assert buffer.stats(0)["trajectories"] == 0


def test_float16_keeps_log_probs_within_the_stated_bound():
    buffer = make_buffer(log_prob_dtype="float16")
    x = -np.concatenate([[0.0, 65504.0], np.logspace(-12, 4.8, 5000)]).astype(np.float32)
    buffer.add("q", Response(np.arange(len(x)), x), 1.0, 0)
    error = np.abs(buffer.trajectory(0).log_probs.astype(np.float64) - x)
    assert (error <= np.abs(x) * 2.0**-11 + 2.0**-25).all()
    assert error.max() > 0
    with pytest.raises(ValueError, match=r"question 'q'.*float16"):
        buffer.add("q", Response([1], [-65536.0]), 1.0, 0)


def test_handles_are_never_used_twice():
    buffer = make_buffer(questions=2)
    gone = int(buffer.rows("q0")[0])
    buffer.retire("q0")
    for i in range(600):
        buffer.add("q1", Response([i, i], [-1.0, -1.0]), 1.0, 0)
    assert gone not in buffer.rows("q1")
    for act in (
        lambda: buffer.trajectory(gone),
        lambda: buffer.mark_used(gone, 1),
        lambda: buffer.mark_scored([gone], [0.5]),
        lambda: buffer.trajectory(10**6),
    ):
        with pytest.raises(KeyError, match="not in the buffer"):
            act()


def test_scores_and_uses_are_kept():
    buffer = make_buffer(questions=2, rows=3)
    rows = buffer.rows("q1")
    buffer.mark_scored(rows, [0.5, 0.25, 1.5])
    buffer.mark_used(int(rows[1]), step=4)
    buffer.mark_used(int(rows[1]), step=5)
    assert [buffer.trajectory(r).entropy for r in rows] == [0.5, 0.25, 1.5]
    assert [buffer.trajectory(r).use_count for r in rows] == [0, 2, 0]
    assert buffer.stats(10)["reuse_max"] == 2
    assert buffer.stats(10)["age_steps_max"] == 10
    assert buffer.stats(10)["age_steps_mean"] == 9
    with pytest.raises(ValueError, match="3 rows and 2 values of entropy"):
        buffer.mark_scored(rows, [0.5, 0.25])


def test_no_bounds_by_default():
    buffer = make_buffer(questions=20, rows=30)
    buffer.mark_used(0, step=1)
    assert buffer.enforce_limits(10**6) == {"age": 0, "reuse": 0, "per_question": 0, "bytes": 0}
    assert buffer.stats(0)["trajectories"] == 600
    assert buffer.bucket_sizes().sum() == 20


def test_age_and_reuse_bounds():
    buffer = make_buffer(questions=2, rows=4, max_age_steps=3, max_reuse=2)
    for _ in range(2):
        buffer.mark_used(int(buffer.rows("q1")[2]), step=4)
    assert buffer.enforce_limits(5) == {"age": 4, "reuse": 1, "per_question": 0, "bytes": 0}
    assert [buffer.trajectory(r).birth_step for r in buffer.rows("q0")] == [2, 3]
    assert [buffer.trajectory(r).birth_step for r in buffer.rows("q1")] == [3]
    buffer.enforce_limits(50)
    assert buffer.bucket_sizes().sum() == 0
    assert buffer.latest_count("q0") == 1
    assert buffer.evicted == {"age": 7, "reuse": 1, "per_question": 0, "bytes": 0}


@pytest.mark.parametrize(("policy", "kept"), [("oldest", [2, 3]), ("highest_entropy", [0, 3]), ("most_reused", [1, 3])])
def test_eviction_policies_per_question(policy, kept):
    buffer = make_buffer(questions=2, rows=4, max_per_question=2, eviction=policy)
    rows = buffer.rows("q0")
    buffer.mark_scored(rows[:3], [0.1, 0.9, 0.5])
    for row, uses in zip(rows, [2, 0, 1, 0], strict=True):
        for _ in range(uses):
            buffer.mark_used(int(row), 3)
    assert buffer.enforce_limits(4)["per_question"] == 4
    assert buffer.rows("q0").tolist() == rows[kept].tolist()
    assert len(buffer.rows("q1")) == 2


def test_bytes_bound_evicts_no_more_than_needed():
    buffer = make_buffer(questions=10, rows=4, max_bytes=20 * (5 * 8 + ROW_BYTES))
    one = buffer.nbytes // 40
    gone = buffer.enforce_limits(4)["bytes"]
    limit = buffer.config.max_bytes
    assert buffer.nbytes <= limit < buffer.nbytes + one
    assert gone == 40 - limit // one
    births = [buffer.trajectory(r).birth_step for q in buffer.questions() for r in buffer.rows(q)]
    assert min(births) == 2  # the oldest went first
    assert buffer.enforce_limits(5)["bytes"] == 0


def test_cooldown_keeps_a_question_out_for_its_steps():
    buffer = make_buffer(questions=7, cooldown_steps=2)
    buffer.mark_used(int(buffer.rows("q3")[0]), step=10)
    sizes = []
    for step in range(10, 14):
        buffer.enforce_limits(step)
        sizes.append(int(buffer.bucket_sizes()[4]))  # what the plan of step + 1 sees
    assert sizes == [0, 0, 1, 1]


def test_cooldown_survives_new_counts_retirement_and_state(restored):
    buffer = make_buffer(questions=7, cooldown_steps=2)
    for i in (1, 3, 5):
        buffer.mark_used(int(buffer.rows(f"q{i}")[0]), step=10)
    buffer.record("q3", 6)
    buffer.retire("q5")
    buffer.unretire("q5")
    buffer.record("q5", 2)
    buffer.add("q5", Response([1], [-1.0]), 1.0, 10)
    again = restored(buffer, buffer.config)
    for b in (buffer, again):
        b.enforce_limits(11)
        assert b.bucket_sizes().tolist() == [0, 1, 1, 1, 0, 1, 0, 1, 0]
        b.enforce_limits(12)
        assert b.bucket_sizes().tolist() == [0, 1, 2, 1, 0, 1, 1, 1, 0]
    assert_same(buffer, again)


def test_freed_space_is_reused_and_compaction_is_bounded():
    """Ten times the bound goes through; memory stays near what is live, and every kept trajectory reads back intact."""
    buffer = ExperienceBuffer(K, BufferConfig(max_age_steps=10), segment_tokens=1000)
    rng = np.random.default_rng(0)
    peak, moved = 0.0, 0
    for step in range(120):
        for i in range(20):
            long_lived = i % 4 == 0
            ids = np.full(rng.integers(5, 60), step * 20 + i)
            buffer.add(f"q{i}", Response(ids, -(ids % 7)), 1.0, step + (1000 if long_lived and i == 0 else 0))
        buffer.enforce_limits(step)
        before, moved = moved, buffer._store.compacted_tokens
        assert moved - before <= 4 * 1000 + 1000
        if step > 30:
            peak = max(peak, buffer._store.log.nbytes / (buffer._store.log.live_tokens * 8))
    assert peak < 1.5
    assert moved > 0
    assert buffer._store.rows.capacity < 1000
    for question in buffer.questions():
        for row in buffer.rows(question):
            found = buffer.trajectory(row)
            assert len(set(found.token_ids.tolist())) == 1
            np.testing.assert_array_equal(found.log_probs, -(found.token_ids % 7))


def test_longer_than_a_segment():
    buffer = make_buffer(questions=3)
    buffer.add("q0", Response(np.arange(1000), -np.ones(1000)), 1.0, 0)
    buffer.add("q0", Response(np.arange(3), -np.ones(3)), 1.0, 0)
    assert [len(t) for t in ids_of(buffer, "q0")] == [5, 1000, 3]
    buffer.retire("q0")
    assert ids_of(buffer, "q1") == [[1, 2, 3, 4, 5]]


def test_snapshot_is_frozen():
    buffer = make_buffer(questions=40, rows=3, length=20)
    frozen = buffer.snapshot()
    expected = buffer.state()[0]
    for i in range(0, 40, 2):
        buffer.retire(f"q{i}")
    for i in range(400):
        buffer.add("other", Response(np.full(20, i), -np.ones(20)), 1.0, 9)
        buffer.enforce_limits(i)
    arrays = frozen.rows | frozen.question_arrays()
    arrays["token_ids"], arrays["log_probs"] = frozen.tokens(np.arange(120))
    for name, column in expected.items():
        np.testing.assert_array_equal(arrays[name], column, err_msg=name)


def test_state_round_trip_continues_identically(restored):
    buffer = make_buffer(questions=40, rows=3)
    rng = np.random.default_rng(1)
    for i in rng.permutation(40)[:25].tolist():
        buffer.record(f"q{i}", int(rng.integers(0, K)))
    for name in ("q3", "q9"):
        buffer.retire(name)
    buffer.discard("q10")
    buffer.mark_scored(buffer.rows("q5"), [0.1, 0.2, 0.3])
    buffer.mark_used(int(buffer.rows("q5")[1]), 4)
    again = restored(buffer, buffer.config)
    assert_same(buffer, again)
    for b in (buffer, again):
        b.record("fresh", 3)
        b.add("fresh", Response([4, 4], [-1.0, -2.0]), 1.0, 8)
        assert not b.add("q5", Response(np.arange(5) + 15, -np.ones(5)), 1.0, 8)
        b.unretire("q3")
        b.retire("q6")
    assert_same(buffer, again)


def test_empty_buffer_round_trips(restored):
    assert_same(make_buffer(), restored(make_buffer()))


def test_state_converts_log_prob_dtype(restored):
    buffer = make_buffer()
    buffer.add("q", Response([1], [-0.1]), 1.0, 0)
    half = restored(buffer, BufferConfig(log_prob_dtype="float16"))
    assert half.trajectory(0).log_probs[0] == np.float32(np.float16(-0.1))
    assert half.nbytes == buffer.nbytes - 2


def test_group_size_change_scales_the_counts(caplog, restored):
    buffer = make_buffer(questions=14)
    buffer.record("zero", 0)
    with caplog.at_level(logging.WARNING):
        buffer.change_group_size(4)
    assert "K=8 to K=4" in caplog.text
    assert [buffer.latest_count(f"q{i}") for i in range(7)] == [1, 1, 2, 2, 2, 3, 3]
    assert buffer.latest_count("zero") == 0
    assert buffer.bucket_sizes().sum() == 14
    assert_same(buffer, restored(buffer))


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("row_serial", lambda c: c[::-1], "serials do not ascend"),
        ("row_question", lambda c: c + 100, "belongs to no question"),
        ("row_reward", lambda c: c[:-1], "row columns differ"),
        ("question_count", lambda c: c + 50, "success count is outside"),
        ("bucket_members", lambda c: c[::-1], "wrong bucket"),
        ("bucket_members", lambda c: np.append(c[:-1], c[0]), "do not hold the eligible"),
        ("bucket_sizes", lambda c: c[:-1], "not 9 buckets"),
        ("retired", lambda c: np.array([0], np.int32), "has trajectories"),
        ("question_free", lambda c: np.array([0], np.int32), "not the unnamed"),
        ("token_ids", lambda c: c[:-1], "differ in number"),
        ("log_probs", lambda c: c[:-1], "differ in number"),
        ("row_length", lambda c: c + 1, "tokens are missing"),
        ("row_prompt_length", lambda c: c - 1, "negative length"),
        ("row_prompt_length", lambda c: c + 1, "tokens are missing"),
        ("row_origin", lambda c: c + 1, "origin is not known"),
        ("row_group", lambda c: c + 1, "group was never made"),
    ],
)
def test_contradictory_state_is_refused(name, change, sentence, restored):
    buffer = make_buffer(questions=14)
    with pytest.raises(ValueError, match=sentence):
        restored(buffer, **{name: change(buffer.state()[0][name])})


def test_other_state_version_is_refused():
    arrays, meta = make_buffer().state()
    with pytest.raises(ValueError, match="version 3 is not 2"):
        ExperienceBuffer.restore(arrays, meta | {"version": 3}, [], (np.empty(0), np.empty(0)))


def test_group_size_must_leave_room_for_partial_success():
    with pytest.raises(ValueError, match="group_size must be at least 2"):
        ExperienceBuffer(1)
