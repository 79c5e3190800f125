"""The laboratory's runs: every variant does what it says, nothing else changes, and a seed gives the same run."""

import copy
import dataclasses
import itertools
from functools import cache

import numpy as np
import pytest
import torch
from tiny_lab import SETTINGS, K, Parity, lab, recorded

from recipe.exgrpo.core.buffer import Trajectory
from recipe.exgrpo.core.config import LossConfig
from recipe.exgrpo.core.policies import make_policy
from recipe.exgrpo.lab import trainer
from recipe.exgrpo.lab.bases import shape_of
from recipe.exgrpo.lab.families import FAMILIES, family
from recipe.exgrpo.lab.model import TinyTransformer, prompt_ids, response_ids, response_scores
from recipe.exgrpo.lab.questions import Stream
from recipe.exgrpo.lab.rows import Row, tensors_of
from recipe.exgrpo.lab.suites import SUITES, VARIANTS, suite, variant
from recipe.exgrpo.lab.trainer import Lab, LabSettings, write_advantages
from recipe.exgrpo.lab.vocabulary import Vocabulary
from recipe.exgrpo.presets.paper_settings import load_table

torch.set_num_threads(1)


# Twelve steps at this task's learning rate never pass these bounds as shipped: nothing would come back.
REACH = {
    "prompts": {"buffer": {"cooldown_steps": 0}},
    "headroom": {"rows": {"max_drift": 100.0}},
    "headroom_extra": {"rows": {"extra": 0.5, "max_drift": 100.0}},
}


def trained(name, seed=0, **overrides) -> tuple[list[dict], list[float]]:
    """(metrics of every step, some weights at the end) of a run in which replay is on from the first step."""
    started = {} if name == "on_policy" else {"start_threshold": None}
    run = lab(name, seed, **(started | REACH.get(name, {}) | overrides))
    metrics = [run.step(step) for step in range(1, SETTINGS.steps + 1)]
    return metrics, run.model.blocks[0].up.weight.flatten().tolist()


trained = cache(trained)


def total(metrics, name):
    return sum(step[name] for step in metrics)


# ---- variants


def test_every_variant_is_in_the_table_once_and_builds():
    configs = {name: variant(name) for name in VARIANTS}
    assert len({repr(config) for config in configs.values()}) == len(set(VARIANTS)) == len(VARIANTS)
    assert not set(SUITES) & set(VARIANTS)
    for name in SUITES:
        assert set(suite(name)) <= set(VARIANTS)
    assert suite("smoke,rho_0.25,exgrpo") == ("on_policy", "exgrpo", "refill", "rho_0.25")


def test_suites_are_named_after_the_papers_tables():
    """Table 3: sensitivity to the Gaussian; Table 6: no question and no trajectory selection; Table 7: retired review."""
    for table, names in {"table3": "Table 3", "table6": "Table 6", "table7": "Table 7"}.items():
        published = {name for name, ablation in load_table()["ablations"].items() if ablation.get("where") == names}
        assert published <= set(suite(table)), table
        assert all(published.isdisjoint(suite(other)) for other in ("table3", "table6", "table7") if other != table)


# Those that differ from `exgrpo` run at once (here all do) only after more steps or rarer events than a test can wait for.
SLOW = {"exgrpo_at_once", "retired_review", "refill_reps_4"}


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - SLOW - {"exgrpo", "on_policy"}))
def test_every_variant_ends_elsewhere_than_exgrpo_and_on_policy(name):
    metrics, weights = trained(name)
    if name in REACH:
        assert total(metrics, "experience/replayed_rows") + total(metrics, "experience/planned_questions") > 0
    for other in {"exgrpo", "on_policy"}:
        assert weights != trained(other)[1]


def test_review_and_reps_reach_their_policies():
    run = lab("retired_review", bookkeeping={"review_interval": 2, "review_share": 1.0}, start_threshold=None)
    assert sum(run.step(step)["experience/reviewed"] for step in range(1, 9)) > 0
    assert lab("refill_reps_4").policy.config.refill.reps == 4
    assert lab("exgrpo_at_once").policy.active
    assert not lab("exgrpo").policy.active


PLANNING = (
    "planned_questions",
    "replayed_questions",
    "skipped_replays",
    "newly_retired",
    "retired_questions",
    "reviewed",
)
STORING = ("added", "buffer_trajectories", "buffer_questions", "buffer_bytes")
REPLAYING = ("replayed_rows", "age_steps_mean", "age_steps_max", "reuse_mean", "reuse_max")
SCORING = ("candidates_scored", "selected_entropy_mean")
SHAPING = ("shaped_rows", "shaped_advantage_mean")
REFILLING = ("zero_variance_groups", "freed_rows", "drawn_groups")


@pytest.mark.parametrize(("name", "on", "off"), [
    ("on_policy", (), (*SHAPING, *PLANNING, *STORING, *REPLAYING, *SCORING, *REFILLING, "replay_active")),
    ("exgrpo", ("added", "replayed_questions", "replayed_rows", "candidates_scored", "selected_entropy_mean"), REFILLING),
    ("no_trajectory_selection", ("replayed_questions", "replayed_rows"), (*SCORING, *REFILLING)),
    ("selection_only", ("planned_questions",), ("replayed_questions", "skipped_replays", *REPLAYING, *SCORING, *REFILLING)),
    ("retirement_only", ("newly_retired",), ("planned_questions", *REPLAYING, *SCORING, *REFILLING)),
    ("no_retirement", ("replayed_questions",), ("newly_retired", "retired_questions", "reviewed")),
    ("refill", (*STORING, *REPLAYING, *REFILLING), (*PLANNING, *SCORING)),
    ("refill_current", ("replayed_rows", *REFILLING), (*STORING, "age_steps_mean", *PLANNING, *SCORING)),
    ("rl_zvp", SHAPING, (*PLANNING, *STORING, *REPLAYING, *SCORING, *REFILLING, "replay_active")),
    ("masked_medium", (), (*SHAPING, *PLANNING, *STORING, *REPLAYING, *SCORING, *REFILLING, "replay_active")),
])  # fmt: skip
def test_a_feature_reads_zero_where_it_is_off_and_not_where_it_is_on(name, on, off):
    metrics, _ = trained(name)
    totals = {metric: total(metrics, f"experience/{metric}") for metric in (*on, *off)}
    assert {metric: totals[metric] > 0 for metric in on} == dict.fromkeys(on, True)
    assert {metric: totals[metric] for metric in off} == dict.fromkeys(off, 0.0)
    assert set(metrics[0]) >= set(trained("on_policy")[0][0])  # the same columns for all
    assert (total(metrics, "batch/rows_out_of_update") > 0) == name.startswith(("refill", "masked"))


def test_before_the_threshold_exgrpo_is_on_policy():
    run, baseline = lab("exgrpo", start_threshold=0.99), lab("on_policy")
    for step in range(1, 4):
        assert run.step(step)["batch/pass_rate"] == baseline.step(step)["batch/pass_rate"]
    assert torch.equal(run.model.tokens.weight, baseline.model.tokens.weight)


def test_a_seed_gives_the_same_run_and_another_seed_another():
    run, again, other = (lab("exgrpo", seed, start_threshold=None) for seed in (3, 3, 4))
    first, second, third = ([r.step(step) for step in range(1, 5)] for r in (run, again, other))
    assert first == second != third
    assert torch.equal(run.model.tokens.weight, again.model.tokens.weight)
    assert run.evaluate(3) == again.evaluate(3)


def test_evaluating_changes_nothing_in_the_run():
    run, other = lab(start_threshold=None), lab(start_threshold=None)
    for step in range(1, 4):
        run.evaluate(2)
        assert run.step(step) == other.step(step)


# ---- the small print


def test_groups_hold_k_rows_of_which_one_is_replayed_at_the_end():
    run = lab(start_threshold=None)
    seen = recorded(run)
    planned = sum(run.step(step)["experience/planned_questions"] for step in range(1, 7))
    replayed = 0
    for rows in seen:
        assert len(rows) == 8 * K
        for i in range(0, len(rows), K):
            group = rows[i : i + K]
            assert len({row.question for row in group}) == 1
            assert not any(row.is_replayed for row in group[:-1])
            rewards = [row.reward for row in group]
            assert [row.advantage for row in group] == pytest.approx([r - np.mean(rewards) for r in rewards])
            replayed += group[-1].is_replayed
    assert replayed == planned > 0
    assert run.costs.fresh_rollouts == 6 * 8 * K - replayed


def test_a_step_holds_no_question_twice_and_none_that_is_retired():
    policy = make_policy(variant("exgrpo_at_once"), K)
    stream = Stream(list("abcdefghijk"), np.random.default_rng(0))
    for question in "abc":
        policy.store.retire(question)
    for _ in range(40):
        assert {slot.question for slot in policy.plan(8, stream)} == set("defghijk")
    policy.store.retire("d")  # fewer than a step are left: retired ones are trained on again
    for _ in range(40):
        assert len({slot.question for slot in policy.plan(8, stream)}) == 8


@pytest.mark.parametrize("importance", ["past", "old"])
def test_a_replayed_row_brings_its_stored_log_probs_unless_importance_is_old(importance):
    run = lab(start_threshold=None, loss={"importance": importance})
    seen = recorded(run)
    for step in range(1, 6):
        stored = {
            (q, tuple(t.token_ids.tolist())): t.log_probs
            for q in list(run.policy.store.questions())
            for t in map(run.policy.store.trajectory, run.policy.store.rows(q))
        }
        run.step(step)
    rows = [row for row in seen[-1] if row.is_replayed]
    assert rows
    same = [np.allclose(row.behaviour, stored[row.question, tuple(row.response)], atol=1e-6) for row in rows]
    assert set(same) == {importance == "past"}


def test_fresh_ratios_are_one_at_the_first_update():
    run = lab("on_policy")
    slots = run.policy.plan(8, run.stream)
    rows = [row for rows in run.roll_out(slots) for row in rows]
    run.write_behaviour(rows)
    before = [row.behaviour.copy() for row in rows]
    for row in rows:
        row.behaviour = None
    run.write_behaviour(rows)
    for row, values in zip(rows, before, strict=True):
        assert len(row.behaviour) == len(row.response)
        np.testing.assert_array_equal(row.behaviour, values)


def test_refill_takes_the_places_of_zero_variance_groups():
    run = lab("refill")
    seen = recorded(run)
    replayed = out = 0
    for step in range(1, 9):
        metrics = run.step(step)
        rows, gone = metrics["experience/replayed_rows"], metrics["batch/rows_out_of_update"]
        assert len(seen[-1]) == 8 * K
        replayed, out = replayed + rows, out + gone
        assert metrics["experience/freed_rows"] == rows + gone == K * metrics["experience/zero_variance_groups"]
        assert sum(row.is_replayed for row in seen[-1]) == rows
        assert sum(not row.in_update for row in seen[-1]) == gone
        for row in seen[-1]:
            if row.is_replayed:
                assert row.advantage in {1 - k / K for k in range(1, K)}
            elif row.in_update:
                assert row.advantage != 0
    assert replayed > 0
    assert out > 0
    assert run.costs.fresh_rollouts == 8 * 8 * K


def test_refill_clips_whatever_shaping_says():
    runs = [lab("refill", loss={"shaping": shaping, "importance": "old"}) for shaping in ("policy", "none", "clip")]
    metrics = [[run.step(step) for step in range(1, 6)] for run in runs]
    assert metrics[0] == metrics[1] == metrics[2]
    assert total(metrics[0], "experience/replayed_rows") > 0
    assert runs[0].loss == LossConfig(shaping="clip", importance="past") != runs[0].config.loss


def test_rl_zvp_gives_groups_without_variance_advantages_by_entropies_of_the_old_policy():
    """Eq. 5 by the model itself, before its update; mixed groups keep theirs."""
    run, shaped = lab("rl_zvp"), 0
    seen = recorded(run)
    for step in range(1, 6):
        before = copy.deepcopy(run.model)
        run.step(step)
        for i in range(0, 8 * K, K):
            group = seen[-1][i : i + K]
            rewards = [row.reward for row in group]
            for row in group:
                with torch.no_grad():
                    prompt = prompt_ids([row.prompt], before.shape.prompt)
                    h = response_scores(before, prompt, response_ids([row.response]))[1][0].numpy()
                flat = min(rewards) == max(rewards)
                by_entropy = 0.1 * (h if row.reward else h - h.max())
                expected = by_entropy if flat else row.reward - np.mean(rewards)
                assert row.advantage == pytest.approx(expected, abs=1e-5)
                shaped += flat
    assert shaped > K


def test_token_advantages_stand_at_own_tokens():
    behaviour, own = np.zeros(3, np.float32), np.array([True, False, True])
    rows = [Row("q", [3], [3, 4, 5], 1.0, behaviour=behaviour, own=own, advantage=np.array([0.5, -0.25])),
            Row("q", [3], [3, 4], 1.0, behaviour=behaviour[:2], advantage=2.0)]  # fmt: skip
    assert tensors_of(rows, 4).advantages.tolist() == [[0.5, 0.0, -0.25], [2.0, 2.0, 0.0]]


def test_rollouts_are_stored_as_they_were_sampled():
    """Also those whose places were taken: what is read for the store is never what stands in the update instead."""
    run = lab("exgrpo_at_once", policy="outside_policy:Rescue", admit="everything")
    sampled, roll_out = [], run.roll_out

    def spy(slots):
        rows = roll_out(slots)
        sampled.append([list(members) for members in rows])
        return rows

    run.roll_out = spy
    metrics = [run.step(step) for step in range(1, 8)]
    assert total(metrics, "experience/rescued_groups") > 0
    rows = [(step, row) for step, groups in enumerate(sampled, 1) for members in groups for row in members]
    answers = {(step, row.question, tuple(row.response)): row.reward for step, row in rows}
    stored = [run.policy.store.trajectory(int(row)) for row in run.policy.store.candidates().row]
    found = {(t.birth_step, t.question, tuple(t.token_ids.tolist())): t.reward for t in stored}
    assert {key: answers.get(key) for key in found} == found
    assert {(question, ids) for _, question, ids in found} == {(question, ids) for _, question, ids in answers}


def test_a_row_out_of_the_update_counts_in_the_normaliser_and_nowhere_else():
    gradients = []
    for keep in (32, 16):
        run = lab("on_policy")
        groups = run.roll_out(run.policy.plan(8, run.stream))
        rows = [row for group in groups for row in group]
        run.write_behaviour(rows)
        write_advantages(groups)
        for row in rows[16:]:  # either nothing of the second half, or all of it without a term
            row.in_update = keep == 32
            row.advantage = 0.0
        run.config = dataclasses.replace(run.config)
        run.settings = dataclasses.replace(run.settings, entropy_coeff=0.0, grad_clip=1e9)
        run._mini_batch(rows, len(rows))
        gradients.append(run.model.tokens.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)
    assert gradients[0].abs().max() > 0


# ---- groups without variance


def test_dynamic_sampling_fills_the_step_with_groups_that_differ():
    run = lab("dynamic_sampling")
    seen, asked = recorded(run), []
    roll_out = run.roll_out

    def spy(slots):
        rows = roll_out(slots)
        asked.append([len({row.reward for row in members}) > 1 for members in rows])
        return rows

    run.roll_out = spy
    discarded = 0.0
    for step in range(1, 9):
        asked.clear()
        metrics = run.step(step)
        flat = [found for call in asked for found in call]
        assert metrics["batch/generated_rollouts"] == K * len(flat)
        assert metrics["batch/discarded_groups"] == len(flat) - 8
        assert len(seen[-1]) == 8 * K
        assert all(row.advantage != 0 for row in seen[-1])
        dropped = 0
        for call, more in itertools.pairwise(asked):  # two for each group dropped, at most a batch at a time
            dropped += 2 * call.count(False)
            assert len(more) == min(dropped, 8)
            dropped -= len(more)
        assert sum(flat) >= 8 > sum(found for call in asked[:-1] for found in call)
        discarded += metrics["batch/discarded_groups"]
    assert discarded > 0
    assert run.costs.fresh_rollouts == 8 * 8 * K + K * discarded


def test_dynamic_sampling_ends_where_nothing_differs():
    """All questions were drawn once more than the step has: the first groups without variance it is."""
    run = lab("dynamic_sampling")
    run.reward = lambda question, response: 0.0
    metrics = run.step(1)
    assert metrics["batch/discarded_groups"] == 24
    assert metrics["batch/generated_rollouts"] == 32 * K


@pytest.mark.parametrize(
    ("name", "values"), [("zero_variance_out", {}), ("refill", {"loss": {"denominator": "mixed"}})]
)
def test_groups_without_variance_may_leave_the_denominator(name, values):
    run = lab(name, **values)
    seen, divisors, mini_batch = recorded(run), [], run._mini_batch
    run._mini_batch = lambda rows, sequences: divisors.append(sequences) or mini_batch(rows, sequences)
    gone = 0.0
    for step in range(1, 7):
        metrics = run.step(step)
        kept = [row for row in seen[-1] if row.in_update]
        assert all(row.advantage != 0 for row in kept)
        assert metrics["batch/rows_out_of_denominator"] == metrics["batch/rows_out_of_update"] == 8 * K - len(kept)
        assert divisors[-2:] == [len(kept) / 2] * 2
        gone += metrics["batch/rows_out_of_denominator"]
    assert gone > 0
    assert total(trained("on_policy")[0], "batch/rows_out_of_denominator") == 0


def on_top(most, **values):
    return lab("exgrpo_at_once", policy="on_top:OnTop", options={"most": most}, **values)


def test_extra_rows_come_on_top_of_all_rollouts():
    run = on_top(5)
    seen = recorded(run)
    metrics = [run.step(step) for step in range(1, 6)]
    counts = [row["experience/extra_rows"] for row in metrics]
    assert counts[0] == 0
    assert counts[-1] == 5
    for rows, row, count in zip(seen, metrics, counts, strict=True):
        assert row["experience/replayed_rows"] == count
        assert row["batch/rows_updated"] == len(rows) == 8 * K + count
        assert [one.is_replayed for one in rows] == [False] * 8 * K + [True] * int(count)
    assert run.costs.fresh_rollouts == 5 * 8 * K
    assert run.costs.updated_sequences == 5 * 8 * K + sum(counts)
    assert run.costs.updated_tokens == sum(len(one.response) for rows in seen for one in rows)


def test_an_update_is_the_float64_gradient_of_its_rows_over_all_sequences():
    """Ragged rows, an odd number on top, tokens that are not the model's own; the divisor is half of all sequences."""
    run = on_top(3)
    run.step(1)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    seen, gradients, masked = recorded(run), [], run._optimizer_step
    run._optimizer_step = lambda: (
        gradients.append({name: p.grad.double().clone() for name, p in run.model.named_parameters()}) or masked()
    )
    update = run.update

    def with_a_token_of_someone_else(batch):
        longest = max(batch.extra, key=lambda row: len(row.response))
        longest.own = np.arange(len(longest.response)) != 0
        return update(batch)

    run.update = with_a_token_of_someone_else
    run.step(2)
    rows, extra = seen[0][: 8 * K], seen[0][8 * K :]
    assert len(extra) == 3
    model = TinyTransformer(run.model.shape).double()
    model.load_state_dict({name: value.double() for name, value in before.items()})
    total = torch.zeros((), dtype=torch.float64)
    for row in [*rows[: 4 * K], *extra[0::2]]:  # of the first update: its half, and every second on top
        prompt, response = prompt_ids([row.prompt], model.shape.prompt), response_ids([row.response])
        log_probs, entropy = (values[0] for values in response_scores(model, prompt, response))
        w = (log_probs - torch.tensor(row.behaviour).double()).exp()
        gain = torch.minimum(w * row.advantage, w.clamp(0.8, 1.2) * row.advantage)
        gain = gain.clamp(min=3 * row.advantage) if row.advantage < 0 else gain
        if row.is_replayed:
            gain = row.advantage * w / (w + 0.1)
        own = torch.ones(len(row.response)) if row.own is None else torch.tensor(row.own).double()
        total = total - ((gain + SETTINGS.entropy_coeff * entropy) * own).sum()
    (total / Parity.response_tokens / ((8 * K + 3) / 2)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[0][name], parameter.grad, rtol=1e-3, atol=1e-7)
    assert any(row.own is not None and not row.own.all() for row in extra)


def test_more_extra_rows_than_the_batch_has_are_refused():
    run = on_top(1000, admit="everything")
    run.step(1)
    run.step(2)  # as many as the batch has, or fewer
    with pytest.raises(ValueError, match="extra rows on top of a batch of 32"):
        run.step(3)


def stored(row) -> Trajectory:
    ids = np.array(row.response, np.int32)
    return Trajectory(0, row.question, ids, row.behaviour, np.ones(len(ids), bool), row.reward, 1)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_neither_gradient_nor_log_probs_depend_on_how_rows_are_put_into_passes(size, monkeypatch):
    found = []
    for rows_a_pass in (size, 16):
        monkeypatch.setattr(trainer, "PASS_ROWS", rows_a_pass)
        run = lab("on_policy")
        groups = run.roll_out(run.policy.plan(8, run.stream))
        rows = [row for group in groups for row in group]
        run.write_behaviour(rows)
        write_advantages(groups)
        scores = run.score([stored(row) for row in rows])
        terms = run._mini_batch(rows, len(rows))
        behaviour = torch.tensor(np.concatenate([row.behaviour for row in rows]))
        gradient = run.model.tokens.weight.grad.clone()
        found.append((torch.tensor(scores.entropy), behaviour, gradient, torch.tensor(list(terms.values()))))
    assert len({len(row.response) for row in rows}) > 2  # ragged, so that padding would show
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_a_gradient_beyond_the_bound_is_skipped():
    run = lab("on_policy", runtime={"max_grad_norm": 1e-12})
    before = run.model.tokens.weight.detach().clone()
    assert run.step(1)["actor/skipped_updates"] == 1.0
    assert torch.equal(run.model.tokens.weight, before)


def test_two_updates_a_step_of_whole_groups():
    run, sizes = lab("on_policy"), []
    run._mini_batch = lambda rows, _: sizes.append((len(rows), len({row.question for row in rows}))) or {"loss": 0.0}
    run.step(1)
    assert sizes == [(4 * K, 4), (4 * K, 4)]


@pytest.mark.parametrize(("values", "key"), [
    ({"steps": -1}, "lab.steps"), ({"questions": 0}, "lab.questions"), ({"questions": 7}, "lab.mini_batches"),
    ({"learning_rate": 0.0}, "lab.learning_rate"), ({"entropy_coeff": -1.0}, "lab.entropy_coeff"),
])  # fmt: skip
def test_nonsense_settings_are_refused_by_name(values, key):
    with pytest.raises(ValueError, match=key):
        LabSettings(**values)


@pytest.mark.parametrize("name", ["nothing", "smoke,nothing"])
def test_unknown_variants_and_suites_are_refused(name):
    with pytest.raises(ValueError, match="nothing"):
        suite(name)
    with pytest.raises(ValueError, match="nothing"):
        variant("nothing")


def test_the_real_families_run():
    for name in FAMILIES:
        task = family(name)
        model = TinyTransformer(shape_of(task, Vocabulary(task.pieces)))
        small = dataclasses.replace(SETTINGS, questions=2, eval_samples=1)
        run = Lab(variant("refill"), small, task, model, 0)
        run.step(1)
        assert 0.0 <= run.evaluate(1) <= 1.0
        assert run.optimizer.param_groups[0]["lr"] == SETTINGS.learning_rate
        own = Lab(variant("refill"), dataclasses.replace(small, learning_rate=None), task, model, 0)
        assert own.optimizer.param_groups[0]["lr"] == task.learning_rate
