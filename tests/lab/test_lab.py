"""The laboratory's runs: every variant does what it says, nothing else changes, and a seed gives the same run."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch

from recipe.exgrpo.core.policies.fill import replay_loss
from recipe.exgrpo.lab import trainer
from recipe.exgrpo.lab.bases import CLEAN, demonstration_loss, shape_of
from recipe.exgrpo.lab.families import FAMILIES, family
from recipe.exgrpo.lab.model import TinyTransformer
from recipe.exgrpo.lab.modes import Replay
from recipe.exgrpo.lab.questions import Stream
from recipe.exgrpo.lab.suites import SUITES, VARIANTS, suite, variant
from recipe.exgrpo.lab.trainer import Lab, LabSettings, write_advantages
from recipe.exgrpo.lab.vocabulary import Vocabulary

torch.set_num_threads(1)
K = 4


class Parity:
    """A task of a few tokens: any letters, then the parity of five bits, which the base below guesses."""

    name = "parity"
    pieces = ("0", "1", "=", "a", "b")
    prompt_tokens, response_tokens = 6, 6

    def questions(self, n, rng, exclude=()):
        every = [f"{i:05b}" for i in range(32) if f"{i:05b}" not in exclude]
        return [every[i] for i in rng.permutation(len(every))[:n]]

    def prompt(self, question):
        return question + "="

    def is_long(self, question):
        return False

    def demonstration(self, question, faults, rng):
        return "".join(rng.choice(["a", "b"], int(rng.integers(4)))) + str(rng.integers(2))

    def grade(self, question, text):
        return text.lstrip("ab") == str(question.count("1") % 2)


SETTINGS = LabSettings(
    steps=12, questions=8, group_size=K, eval_every=3, eval_samples=1, final_samples=1, train_questions=24,
    heldout_questions=6, learning_rate=3e-3,
)  # fmt: skip


@cache
def base() -> dict:
    """Weights of a base that solves about half of its rollouts."""
    torch.manual_seed(0)
    model = TinyTransformer(shape_of(Parity(), Vocabulary(Parity.pieces)))
    optimizer, rng = torch.optim.AdamW(model.parameters(), lr=3e-3), np.random.default_rng(0)
    for _ in range(60):
        questions = Parity().questions(16, rng)
        loss = demonstration_loss(model, Parity(), Vocabulary(Parity.pieces), questions, CLEAN, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


def lab(name="exgrpo", seed=0, settings=SETTINGS, **overrides) -> Lab:
    model = TinyTransformer(shape_of(Parity(), Vocabulary(Parity.pieces)))
    model.load_state_dict(base())
    return Lab(variant(name, seed, **overrides), settings, Parity(), model, seed)


def trained(name, seed=0, **overrides) -> tuple[list[dict], list[float]]:
    """(metrics of every step, some weights at the end) of a run in which replay is on from the first step."""
    started = {} if name == "on_policy" else {"start_threshold": None}
    run = lab(name, seed, **(started | overrides))
    metrics = [run.step(step) for step in range(1, SETTINGS.steps + 1)]
    return metrics, run.model.blocks[0].up.weight.flatten().tolist()


trained = cache(trained)


def total(metrics, name):
    return sum(step[name] for step in metrics)


# ---- variants


def test_every_variant_is_in_the_table_once_and_builds():
    configs = {name: variant(name) for name in VARIANTS}
    assert len(set(configs.values())) == len(VARIANTS)
    assert not set(SUITES) & set(VARIANTS)
    for name in SUITES:
        assert set(suite(name)) <= set(VARIANTS)
    assert suite("smoke,rho_0.25,exgrpo") == ("on_policy", "exgrpo", "fill", "rho_0.25")


# Those that differ from `exgrpo` run at once (here all do) only after more steps or rarer events than a test can wait for.
SLOW = {"exgrpo_at_once", "retired_review", "fill_reps_4"}


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - SLOW - {"exgrpo", "on_policy"}))
def test_every_variant_ends_elsewhere_than_exgrpo_and_on_policy(name):
    _, weights = trained(name)
    for other in {"exgrpo", "on_policy"}:
        assert weights != trained(other)[1]


def test_review_and_reps_reach_their_managers():
    run = lab("retired_review", bookkeeping={"review_interval": 2, "review_share": 1.0}, start_threshold=None)
    assert sum(run.step(step)["experience/reviewed"] for step in range(1, 9)) > 0
    assert lab("fill_reps_4").mode.manager.config.reps == 4
    assert lab("exgrpo_at_once").mode.active
    assert not lab("exgrpo").mode.active


@pytest.mark.parametrize(("name", "on", "off"), [
    ("on_policy", [], ["experience/added", "experience/replayed_questions", "fill/filled", "batch/dropped"]),
    ("exgrpo", ["experience/added", "experience/replayed_questions", "experience/candidates_scored"], ["fill/filled"]),
    ("no_trajectory_selection", ["experience/replayed_questions"], ["experience/candidates_scored"]),
    ("questions_only", ["experience/planned_questions"], ["experience/replayed_questions", "fill/filled"]),
    ("retirement_only", ["experience/newly_retired"], ["experience/planned_questions"]),
    ("no_retirement", ["experience/replayed_questions"], ["experience/newly_retired"]),
    ("fill", ["fill/filled", "fill/budget", "fill/age_steps_mean"], ["experience/added", "experience/planned_questions"]),
    ("fill_current", ["fill/filled"], ["fill/entries", "fill/age_steps_mean", "fill/added"]),
    ("masked_medium", ["batch/dropped"], ["experience/added", "fill/filled"]),
])  # fmt: skip
def test_a_feature_reads_zero_where_it_is_off_and_not_where_it_is_on(name, on, off):
    metrics, _ = trained(name)
    assert {metric: total(metrics, metric) > 0 for metric in on} == dict.fromkeys(on, True)
    assert {metric: total(metrics, metric) for metric in off} == dict.fromkeys(off, 0.0)
    assert set(metrics[0]) == set(trained("exgrpo")[0][0])  # the same columns for all


def test_before_the_threshold_exgrpo_is_on_policy():
    run, twin = lab("exgrpo", start_threshold=0.99), lab("on_policy")
    for step in range(1, 4):
        assert run.step(step)["batch/pass_rate"] == twin.step(step)["batch/pass_rate"]
    assert torch.equal(run.model.tokens.weight, twin.model.tokens.weight)


def test_a_seed_gives_the_same_run_and_another_seed_another():
    run, again, other = (lab("exgrpo", seed, start_threshold=None) for seed in (3, 3, 4))
    first, second, third = ([r.step(step) for step in range(1, 5)] for r in (run, again, other))
    assert first == second != third
    assert torch.equal(run.model.tokens.weight, again.model.tokens.weight)
    assert run.evaluate(3) == again.evaluate(3)


def test_evaluating_changes_nothing_in_the_run():
    run, twin = lab(start_threshold=None), lab(start_threshold=None)
    for step in range(1, 4):
        run.evaluate(2)
        assert run.step(step) == twin.step(step)


# ---- the small print


def recorded(run: Lab) -> list[list]:
    """The groups that a run hands to its updates from now on, as they are then."""
    seen, update = [], run.update

    def spy(rows):
        seen.append([dataclasses.replace(row) for row in rows])
        return update(rows)

    run.update = spy
    return seen


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
    mode = Replay(variant("exgrpo_at_once"), K)
    stream = Stream(list("abcdefghijk"), np.random.default_rng(0))
    for question in "abc":
        mode.manager.buffer.retire(question)
    for _ in range(40):
        assert {slot.question for slot in mode.slots(stream, 8)} == set("defghijk")
    mode.manager.buffer.retire("d")  # fewer than a step are left: retired ones are trained on again
    for _ in range(40):
        assert len({slot.question for slot in mode.slots(stream, 8)}) == 8


@pytest.mark.parametrize("importance", ["past", "old"])
def test_a_replayed_row_brings_its_stored_log_probs_unless_importance_is_old(importance):
    run = lab(start_threshold=None, loss={"importance": importance})
    seen = recorded(run)
    for step in range(1, 6):
        stored = {
            (q, tuple(t.token_ids.tolist())): t.log_probs
            for q in list(run.mode.manager.buffer.questions())
            for t in map(run.mode.manager.buffer.trajectory, run.mode.manager.buffer.rows(q))
        }
        run.step(step)
    rows = [row for row in seen[-1] if row.is_replayed]
    assert rows
    same = [np.allclose(row.behaviour, stored[row.question, tuple(row.response)], atol=1e-6) for row in rows]
    assert set(same) == {importance == "past"}


def test_fresh_ratios_are_one_at_the_first_update():
    run = lab("on_policy")
    slots = run.mode.slots(run.stream, 8)
    rows = [row for rows in run.roll_out(slots) for row in rows]
    run.write_behaviour(rows)
    before = [row.behaviour.copy() for row in rows]
    for row in rows:
        row.behaviour = None
    run.write_behaviour(rows)
    for row, values in zip(rows, before, strict=True):
        assert len(row.behaviour) == len(row.response)
        np.testing.assert_array_equal(row.behaviour, values)


def test_fill_takes_the_places_of_groups_without_variance():
    run = lab("fill")
    seen = recorded(run)
    filled = dropped = 0
    for step in range(1, 9):
        metrics = run.step(step)
        assert len(seen[-1]) == 8 * K
        filled += metrics["fill/filled"]
        dropped += metrics["batch/dropped"]
        assert metrics["fill/budget"] == metrics["fill/filled"] + metrics["batch/dropped"]
        assert sum(row.is_replayed for row in seen[-1]) == metrics["fill/filled"]
        assert sum(not row.in_update for row in seen[-1]) == metrics["batch/dropped"]
        for row in seen[-1]:
            if row.is_replayed:
                assert row.advantage in {1 - k / K for k in range(1, K)}
            elif row.in_update:
                assert row.advantage != 0
    assert filled > 0
    assert dropped > 0
    assert run.costs.fresh_rollouts == 8 * 8 * K


def test_fill_clips_whatever_shaping_says():
    runs = [lab("fill", loss={"shaping": shaping, "importance": "old"}) for shaping in ("policy", "none", "clip")]
    metrics = [[run.step(step) for step in range(1, 6)] for run in runs]
    assert metrics[0] == metrics[1] == metrics[2]
    assert total(metrics[0], "fill/filled") > 0
    assert runs[0].mode.loss == replay_loss(runs[0].config.loss) != runs[0].config.loss


def test_a_dropped_row_counts_in_the_normaliser_and_nowhere_else():
    gradients = []
    for keep in (32, 16):
        run = lab("on_policy")
        groups = run.roll_out(run.mode.slots(run.stream, 8))
        rows = [row for group in groups for row in group]
        run.write_behaviour(rows)
        write_advantages(groups)
        for row in rows[16:]:  # either nothing of the second half, or all of it without a term
            row.in_update = keep == 32
            row.advantage = 0.0
        run.config = dataclasses.replace(run.config)
        run.settings = dataclasses.replace(run.settings, entropy_coeff=0.0, grad_clip=1e9)
        run._mini_batch(rows)
        gradients.append(run.model.tokens.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_neither_gradient_nor_log_probs_depend_on_how_rows_are_put_into_passes(size, monkeypatch):
    found = []
    for rows_a_pass in (size, 16):
        monkeypatch.setattr(trainer, "PASS_ROWS", rows_a_pass)
        run = lab("on_policy")
        groups = run.roll_out(run.mode.slots(run.stream, 8))
        rows = [row for group in groups for row in group]
        run.write_behaviour(rows)
        write_advantages(groups)
        scores = run.score([(row.question, np.array(row.response)) for row in rows])
        terms = run._mini_batch(rows)
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
    run._mini_batch = lambda rows: sizes.append((len(rows), len({row.question for row in rows}))) or {"loss": 0.0}
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
        run = Lab(variant("fill"), small, task, model, 0)
        run.step(1)
        assert 0.0 <= run.evaluate(1) <= 1.0
        assert run.optimizer.param_groups[0]["lr"] == SETTINGS.learning_rate
        own = Lab(variant("fill"), dataclasses.replace(small, learning_rate=None), task, model, 0)
        assert own.optimizer.param_groups[0]["lr"] == task.learning_rate
