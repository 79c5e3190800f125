"""Whole runs through verl's loop, TransferQueue and engine, with a scripted rollout: what was trained on, against float64.

Every value that a step hands from one place to another is felt here: by the gradient of each update, which the oracle makes
from the script and the weights alone, by the metrics, or by what a resumed run does next.
"""

import dataclasses
import re
import resource
import shutil
import subprocess
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from oracle import Float64, Found, Row, gradient
from whole_runs import SOLVED, B, K, Rollout, Run
from whole_steps import AT_ONCE, MOVING, Step, check, distance, objective_of, row_by_key, steps_of

from recipe.exgrpo.runs.folder import checkpoints, tracked_step
from recipe.exgrpo.runs.history import read_history
from recipe.exgrpo.trainer.lifecycle import SaveError
from recipe.exgrpo.trainer.trainer import ExGRPOTrainer

pytestmark = pytest.mark.verl


# ---- ExGRPO


@dataclasses.dataclass
class Books:
    """Alg. 1 by hand: what is stored of each question, the latest success counts, the retired."""

    stored: dict[str, list[Rollout]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    retired: list[str] = dataclasses.field(default_factory=list)
    uses: Counter = dataclasses.field(default_factory=Counter)

    def eligible(self) -> set[str]:
        return {question for question, count in self.counts.items() if 0 < count < K and self.stored[question]}

    def close(self, step: Step, script: dict[str, Rollout]) -> int:
        """Take note of a finished step; returns how many trajectories were added."""
        added = 0
        for uid, rows in step.groups.items():
            question, count = step.questions[uid], step.successes(uid)
            if len(rows) < K:
                continue
            if count == K:
                self.retired.append(question)
                self.stored.pop(question, None)
                self.counts.pop(question, None)
            elif count:
                self.counts[question] = count
                new = [r for key, r in script.items() if key.rsplit("_", 2)[0] == uid and r.reward > 0.5]
                self.stored[question] += new
                added += len(new)
            elif question in self.counts:
                self.counts[question] = 0
        return added


def test_exgrpo(runs, model):
    run = runs("exgrpo", 5, *AT_ONCE)
    books, far, clipped = Books(), 0.0, 0.0
    for step in steps_of(run, model):
        metrics, objective = run.metrics[step.number], objective_of()
        assert sorted(map(len, step.groups.values())) == [K] * B
        found = check(step, model, list(step.groups.values()), objective)
        check_replayed(step, books, model, metrics)
        check_ratios(found, metrics)
        added = books.close(step, run.script.rollouts)
        assert metrics["experience/added"] == added
        assert metrics["experience/retired_questions"] == len(books.retired)
        assert metrics["experience/buffer_trajectories"] == sum(map(len, books.stored.values()))
        if step.sources:
            far = max(far, float((found[0].stored - 1).abs().max()))
        clipped = max(clipped, float((found[-1].fresh - 1).abs().max()))
    assert far > 0.2  # the importance weights of this run are none of them trivial
    assert clipped > 0.2
    assert sum(books.uses.values()) >= 6


def check_replayed(step: Step, books: Books, model: Float64, metrics: dict) -> None:
    """Half the batch is planned, as far as there is anything; the stored trajectory of least entropy joins."""
    planned = {uid for uid in step.groups if uid.startswith("replay")}
    assert len(planned) == min(B // 2, len(books.eligible())) == len(step.sources)
    assert {step.questions[uid] for uid in planned} <= books.eligible()
    model.at(step.updates[0].weights)
    entropies = []
    for key, source in step.sources.items():
        assert source.question == step.questions[key.rsplit("_", 2)[0]]
        rows = [Row(one.prompt, one.response, one.reward) for one in books.stored[source.question]]
        scores = [model.mean_entropy(row, 1.0) for row in rows]
        assert rows[int(np.argmin(scores))].response == source.response
        books.uses[tuple(source.response)] += 1
        entropies.append(min(scores))
    ages = [step.number - source.step for source in step.sources.values()]
    uses = [books.uses[tuple(source.response)] for source in step.sources.values()]
    expected = {
        "planned_questions": len(planned),
        "replayed_questions": len(planned),
        "candidates_scored": sum(len(books.stored[source.question]) for source in step.sources.values()),
        "selected_entropy_mean": np.mean(entropies) if entropies else 0,
        "age_steps_mean": np.mean(ages) if ages else 0,
        "reuse_max": max(uses, default=0),
        "scoring_calls": float(bool(planned)),
        "replay_active": 1,
    }
    assert {name: metrics[f"experience/{name}"] for name in expected} == pytest.approx(expected, rel=1e-3)
    fresh = [row.reward for uid in step.groups for row in step.fresh(uid)]
    for name in ("batch/pass_rate", "reward/acc/mean"):
        assert metrics[name] == pytest.approx(np.mean(fresh))


def check_ratios(found: list[Found], metrics: dict, beta: float = 0.1) -> None:
    """The metrics of w, over all updates of the step."""
    stored, fresh = torch.cat([one.stored for one in found]), torch.cat([one.fresh for one in found])
    expected = {"actor/fresh_ratio_mean": fresh.mean(), "actor/replay_ratio_mean": 0.0, "actor/replay_shaped_mean": 0.0}
    if len(stored):
        expected["actor/replay_ratio_mean"] = stored.mean()
        expected["actor/replay_shaped_mean"] = (stored / (stored + beta)).mean()
        expected["actor/replay_ess"] = stored.sum() ** 2 / (stored**2).sum() / len(stored)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-3), name


def test_the_settings_of_a_run_reach_its_gradients(runs, model):
    """Every number of the loss unlike its default, those of scoring too."""
    settings = (
        "actor_rollout_ref.rollout.temperature=0.7",
        "actor_rollout_ref.actor.clip_ratio_low=0.1",
        "actor_rollout_ref.actor.clip_ratio_high=0.3",
        "actor_rollout_ref.actor.entropy_coeff=0.05",
        "actor_rollout_ref.actor.loss_scale_factor=20",
        "exgrpo.loss.beta=0.4",
    )
    run = runs("settings", 3, *AT_ONCE, *settings)
    objective = objective_of(temperature=0.7, low=0.1, high=0.3, entropy=0.05, horizon=20, beta=0.4)
    steps = steps_of(run, model, 0.7)
    for step in steps:
        found = check(step, model, list(step.groups.values()), objective)
        check_ratios(found, run.metrics[step.number], beta=0.4)
        chosen = [model.at(step.updates[0].weights).mean_entropy(row, 0.7)
                  for rows in step.groups.values() for row in rows if row.past is not None]  # fmt: skip
        entropy = run.metrics[step.number]["experience/selected_entropy_mean"]
        assert entropy == pytest.approx(np.mean(chosen) if chosen else 0, rel=1e-3)
    assert len(steps[-1].sources) == 2


def test_without_correction_stored_rows_are_weighed_by_todays_policy(runs, model):
    run = runs("old", 3, *AT_ONCE, "exgrpo.loss.importance=old")
    for step in steps_of(run, model):
        now = model.at(step.updates[0].weights)
        groups = [
            [row if row.past is None else dataclasses.replace(row, past=now.log_probs(row, 1.0)) for row in rows]
            for rows in step.groups.values()
        ]
        check(step, model, groups, objective_of())
    assert step.sources


def test_replay_starts_after_the_threshold_and_the_workers_know(runs, model):
    """Steps 1 and 2 are off although 2 passes the threshold, 3 collects, 4 replays; `before_replay` clips in 1 and 2."""

    def reward(question, step, session):
        return float(session < (1 if step == 1 else max(1, SOLVED[question])))

    settings = ("exgrpo.start_threshold=0.4", "exgrpo.loss.fresh_clip=before_replay")
    run = runs("threshold", 4, *MOVING, *settings, reward=reward)
    assert [run.metrics[i]["experience/replay_active"] for i in (1, 2, 3, 4)] == [0, 0, 1, 1]
    assert [run.metrics[i]["experience/added"] > 0 for i in (1, 2, 3, 4)] == [False, False, True, True]
    differs = []
    for step in steps_of(run, model):
        groups = list(step.groups.values())
        clips, other = (objective_of(clips_fresh=flag) for flag in (step.number <= 2, step.number > 2))
        check(step, model, groups, clips)
        model.at(step.updates[0].weights)
        old = {id(row): model.log_probs(row, 1.0) for group in groups for row in group}
        model.at(step.updates[-1].weights)
        differs.append(distance(*(gradient(model, groups, old, one).gradient for one in (clips, other))))
        assert bool(step.sources) == (step.number == 4)
    assert min(differs[:2]) > 0.01  # clipping or not is a matter of the gradient before the start
    assert max(differs[2:]) > 0.01  # and after it


def test_a_group_that_lost_rollouts_is_trained_on_and_left_out_of_the_books(runs, model):
    """q0 loses one rollout in step 1, q5 all of them in step 2; what is planned loses one in step 3."""

    def lost(question, step, session):
        return (question, step, session) == ("q0", 1, 3) or (question, step) == ("q5", 2) or (step, session) == (3, 2)

    run = runs("lost", 3, *AT_ONCE, lost=lost)
    books = Books()
    for step in steps_of(run, model):
        check(step, model, list(step.groups.values()), objective_of())
        eligible = books.eligible()
        assert len(step.sources) == min(B // 2, len(eligible))
        books.close(step, run.script.rollouts)
        partial = sum(len(rows) < K for rows in step.groups.values())
        assert run.metrics[step.number]["experience/partial_groups"] == partial
        assert run.metrics[step.number]["experience/buffer_trajectories"] == sum(map(len, books.stored.values()))
    assert [run.metrics[i]["batch/questions"] for i in (1, 2, 3)] == [4, 3, 4]
    assert "q0" not in {source.question for source in step.sources.values()}
    assert [run.metrics[i]["experience/partial_groups"] for i in (1, 2, 3)] == [1, 0, 4]


def test_reviewed_questions_are_in_the_batch(runs, model):
    """Nothing else brings q3 back within an epoch: the loader is past it."""
    review = ("exgrpo.bookkeeping.review_interval=1", "exgrpo.bookkeeping.review_share=1.0", "exgrpo.rho=0.25")
    run = runs("review", 2, *AT_ONCE, *review)
    assert run.script.questions[1] == ["q0", "q1", "q2", "q3"]
    assert run.metrics[1]["experience/newly_retired"] == 1
    assert "q3" in run.script.questions[2]
    assert run.metrics[2]["experience/reviewed"] == 1
    (uid,) = [uid for uid, question in steps_of(run, model)[1].questions.items() if question == "q3"]
    assert len([key for key in run.group.rows[2] if key.startswith(uid)]) == K


# ---- the other policies


def test_on_policy_it_is_grpo(runs, model):
    run = runs("on_policy", 2, *MOVING, "method=on_policy")
    for step in steps_of(run, model):
        assert not step.sources
        check(step, model, list(step.groups.values()), objective_of())
        metrics, rewards = run.metrics[step.number], [row.reward for rows in step.groups.values() for row in rows]
        assert metrics["actor/replay_ratio_mean"] == 0
        assert metrics["batch/pass_rate"] == pytest.approx(np.mean(rewards))
        assert metrics["batch/solve_all"] == sum(step.successes(uid) == K for uid in step.groups)
    assert [run.script.questions[i] for i in (1, 2)] == [[f"q{i}" for i in range(4)], [f"q{i}" for i in range(4, 8)]]


def test_masked_grpo_trains_on_its_band_alone(runs, model):
    run = runs("masked", 2, *MOVING, "method=masked", "exgrpo.mask.band=medium")
    for step in steps_of(run, model):
        inside = {uid: 1 < step.successes(uid) <= 3 for uid in step.groups}
        assert set(inside.values()) == {True, False}
        check(step, model, [rows for uid, rows in step.groups.items() if inside[uid]], objective_of())
        assert run.metrics[step.number]["batch/rows_out_of_update"] == K * sum(not kept for kept in inside.values())


def test_refill_puts_past_successes_where_groups_have_no_variance(runs, model):
    """q3 and q10 are solved by all, q4 and q11 by none; their rows go, successes of mixed groups come with 1 - k/K."""
    run = runs("refill", 3, *AT_ONCE, "method=refill")
    solved, seen = {}, 0
    for step in steps_of(run, model):
        rows = step.groups.items()
        mixed = {uid: rows for uid, rows in rows if not uid.startswith("refill") and 0 < step.successes(uid) < K}
        whole = {uid: rows for uid, rows in mixed.items() if len(rows) == K}
        placed = [
            dataclasses.replace(step.groups[key.rsplit("_", 2)[0]][0], advantage=1 - solved[source.question, source.step] / K)
            for key, source in step.sources.items()
        ]  # fmt: skip
        metrics = run.metrics[step.number]
        freed = (B - len(mixed)) * K
        assert metrics["experience/freed_rows"] == freed
        assert metrics["experience/replayed_rows"] == len(placed) == len(step.sources)
        assert metrics["batch/rows_out_of_update"] == freed - len(placed)
        check(step, model, [*whole.values(), *([one] for one in placed)], objective_of(shaping="clip"))
        solved |= {(step.questions[uid], step.number): step.successes(uid) for uid in mixed}
        seen += len(placed)
    assert seen >= 4


@pytest.mark.parametrize("replay", [(), ("method=refill", "exgrpo.loss.shaping=clip")], ids=["on_policy", "refill"])
def test_groups_without_variance_are_out_of_the_denominator(runs, model, replay):
    """The gradient is that of a batch in which they had not been sampled; what refill puts in their places counts."""
    settings = (*AT_ONCE, *(replay or ("method=on_policy",)), "exgrpo.loss.denominator=mixed")
    run = runs(f"mixed{len(replay)}", 3, *settings)
    dropped = 0
    for step in steps_of(run, model):
        by_key, metrics = row_by_key(step, run), run.metrics[step.number]
        kept = {key: row for key, row in by_key.items() if row.past is not None or 0 < solved_of(run, key) < K}
        silent = B * K - len(kept)
        assert metrics["batch/rows_out_of_denominator"] == silent == metrics["batch/rows_out_of_update"]
        assert metrics["batch/rows_updated"] == len(kept)
        check(step, model, [[row] for row in kept.values()], objective_of(shaping="clip", rows=len(kept)))
        dropped += silent
    assert dropped > 0
    assert bool(replay) == any(row.past is not None for row in kept.values())


def test_by_default_they_are_in_it(runs):
    assert runs("all_groups", 1, *MOVING, "method=on_policy").metrics[1]["batch/rows_out_of_denominator"] == 0


def solved_of(run: Run, key: str) -> int:
    """Successes of the group that a rollout was sampled with."""
    own = run.script.rollouts[key]
    return sum(r.reward > 0.5 for r in run.script.rollouts.values() if (r.question, r.step) == (own.question, own.step))


# ---- dynamic sampling


def test_groups_without_variance_are_sampled_anew(runs, model):
    """q3 and q10 are solved by all, q4 and q11 by none: two more questions for each, until four groups differ."""
    run = runs("dynamic", 3, *MOVING, "method=on_policy", "exgrpo.dynamic_sampling=true")
    asked = {1: [0, 1, 2, 3, 4, 5], 2: [6, 7, 8, 9], 3: [10, 11, 0, 1, 2, 3, 4, 5]}
    assert run.script.questions == {step: [f"q{i}" for i in found] for step, found in asked.items()}
    for step in steps_of(run, model):
        metrics, generated = run.metrics[step.number], asked[step.number]
        assert set(step.questions.values()) == {f"q{i}" for i in generated if 0 < SOLVED[f"q{i}"] < K}
        assert sorted(map(len, step.groups.values())) == [K] * B
        check(step, model, list(step.groups.values()), objective_of())
        assert metrics["batch/generated_rollouts"] == K * len(generated)
        assert metrics["batch/discarded_groups"] == len(generated) - B
        rewards = [row.reward for rows in step.groups.values() for row in rows]
        assert metrics["batch/pass_rate"] == pytest.approx(np.mean(rewards))


def test_without_it_every_group_is_trained_on(runs):
    run = runs("static", 1, *MOVING, "method=on_policy")
    assert run.metrics[1]["batch/discarded_groups"] == 0
    assert run.metrics[1]["batch/generated_rollouts"] == B * K


def test_dapo_is_a_token_mean_of_normalised_advantages_clipped_higher(runs, model):
    run = runs("dapo", 2, *MOVING, "method=dapo")
    beyond = 0.0
    for step in steps_of(run, model):
        groups = []
        for rows in step.groups.values():
            rewards = np.array([row.reward for row in rows])
            scale = rewards.std(ddof=1) + 1e-6
            normal = [(row, (row.reward - rewards.mean()) / scale) for row in rows]
            groups.append([dataclasses.replace(row, advantage=value) for row, value in normal])
        tokens = sum(len(row.response) for rows in groups for row in rows)
        found = check(step, model, groups, objective_of(rows=1, horizon=tokens, high=0.28, entropy=0.0))
        beyond = max(beyond, float(found[-1].fresh.max()))
    assert run.metrics[1]["batch/discarded_groups"] == 2
    assert beyond > 1.28


def test_a_step_that_finds_no_variance_is_an_error_not_a_loop(runs):
    bound = "algorithm.filter_groups.max_num_gen_batches=3"
    with pytest.raises(
        RuntimeError, match=r"3 batches .* step 1, .*raise algorithm\.filter_groups\.max_num_gen_batches"
    ):
        runs("hopeless", 1, *MOVING, "method=dapo", bound, reward=lambda question, step, session: 0.0)


def test_a_resumed_run_with_dynamic_sampling_draws_the_same_questions(runs):
    settings = (*MOVING[:-1], "trainer.save_freq=1", "method=on_policy", "exgrpo.dynamic_sampling=true")
    whole = runs("dynamic_whole", 3, *settings)
    folder = whole.folder.with_name("dynamic_resumed")
    shutil.copytree(whole.folder, folder)
    for step in (2, 3):
        shutil.rmtree(folder / f"global_step_{step}")
    (folder / "latest_checkpointed_iteration.txt").write_text("1")
    resumed = runs("dynamic_resumed", 3, *settings)
    assert resumed.script.questions == {step: whole.script.questions[step] for step in (2, 3)}


# ---- rows on top of the batch


@pytest.mark.parametrize("most", [3, 8, 16])
def test_extra_rows_are_in_both_updates_and_counted_by_their_divisor(runs, model, most):
    """Two updates a step, twice: each over its stretch of the batch, divided by half of all sequences, empty rows apart."""
    settings = ("exgrpo.policy=on_top:OnTop", f"exgrpo.options={{most: {most}}}", "exgrpo.loss.shaping=clip")
    run = runs(f"extra{most}", 3, *AT_ONCE, *settings, "actor_rollout_ref.actor.ppo_mini_batch_size=2")
    added, far = 0, 0.0
    for step in steps_of(run, model):
        count, metrics = len(step.sources), run.metrics[step.number]
        assert count == min(most, added) == metrics["experience/extra_rows"] == metrics["experience/replayed_rows"]
        assert metrics["batch/rows_updated"] == B * K + count
        rows = list(run.group.rows[step.number])
        empty = [key for key in rows if key.startswith("pad")]
        assert len(rows) == B * K + count + len(empty)
        assert len(empty) == -count % 8  # 2 updates x lcm(4 rollouts, 1 rank)
        model.at(step.updates[0].weights)
        found = row_by_key(step, run)
        old = {id(row): model.log_probs(row, 1.0) for row in found.values()}
        half, objective = len(rows) // 2, objective_of(shaping="clip", rows=(B * K + count) / 2)
        for i, update in enumerate(step.updates):
            mine = [[found[key]] for key in rows[half * (i % 2) : half * (i % 2 + 1)] if key in found]
            expected = gradient(model.at(update.weights), mine, old, objective)
            assert distance(update.gradient, expected.gradient) < 1e-3, (step.number, i)
            far = max([far, *(expected.stored - 1).abs().tolist()])
        added += metrics["experience/added"]
    assert len(step.updates) == 4
    assert count > 0
    assert far > 0.1


# ---- history.jsonl


def test_the_history_says_what_was_replayed_and_why(runs, model):
    """Line by line against the script: outcomes of all groups, candidates with the oracle's scores, what was taken."""
    run = runs("history", 4, *AT_ONCE)
    history, taken = {row["step"]: row for row in read_history(run.folder / "history.jsonl")}, 0
    stored: dict[str, list[Rollout]] = defaultdict(list)
    for step in steps_of(run, model):
        line, metrics = history[step.number], run.metrics[step.number]
        outcomes = {question: (step.successes(uid), K) for uid, question in step.questions.items()}
        found = zip(line["question"], line["solved"], line["size"], line["joined"], strict=True)
        assert {question: (solved, size) for question, solved, size, _ in found} == outcomes
        assert sorted(question for _, question in line["replayed"]) == sorted(s.question for s in step.sources.values())
        assert (
            sum(line["joined"]) == len(line["replayed"]) == len(line["choices"]) == metrics["experience/replayed_rows"]
        )
        model.at(step.updates[0].weights)
        replayed = {source.question: source for source in step.sources.values()}
        for choice in line["choices"]:
            check_choice(choice, stored[choice["question"][0]], replayed, model)
            assert [choice["row"][0], choice["question"][0]] in line["replayed"]
            taken += 1
        assert metrics["batch/history_bytes"] > 100
        for uid, question in step.questions.items():
            new = [r for key, r in run.script.rollouts.items() if key.rsplit("_", 2)[0] == uid and r.reward > 0.5]
            stored[question] += new if 0 < step.successes(uid) < K else []
    assert sorted(history) == [1, 2, 3, 4]
    assert taken >= 4


def check_choice(choice: dict, stored: list[Rollout], replayed: dict[str, Rollout], model: Float64) -> None:
    """All that is stored of the question competed, ordered by the oracle's entropy; the first was taken."""
    rows = [Row(one.prompt, one.response, one.reward) for one in stored]
    scores = [model.mean_entropy(row, 1.0) for row in rows]
    order = np.argsort(scores, kind="stable")
    assert choice["considered"] == len(rows) == len(choice["row"])
    assert choice["entropy"] == pytest.approx([scores[i] for i in order], rel=1e-3)
    assert choice["birth_step"] == [stored[i].step for i in order]
    assert choice["taken"] == [True] + [False] * (len(rows) - 1)
    assert stored[order[0]] == replayed[choice["question"][0]]


def test_a_scored_rank_rule_from_outside_gets_the_policys_own_likelihoods(runs, model):
    """`outside_policy.least_likely` by the trainer's scoring: of a question's stored successes the one of largest mean nll."""
    run = runs("least_likely", 4, *AT_ONCE, "exgrpo.rank=outside_policy:least_likely")
    stored, chosen, otherwise = defaultdict(list), 0, 0
    for step in steps_of(run, model):
        model.at(step.updates[0].weights)
        for source in step.sources.values():
            rows = [Row(one.prompt, one.response, one.reward) for one in stored[source.question]]
            nll = [-float(model.log_probs(row, 1.0).mean()) for row in rows]
            assert stored[source.question][int(np.argmax(nll))] == source
            otherwise += int(np.argmax(nll)) != int(np.argmin([model.mean_entropy(row, 1.0) for row in rows]))
            chosen += len(rows) > 1
        assert run.metrics[step.number]["experience/candidates_scored"] >= len(step.sources)
        for uid, question in step.questions.items():
            new = [r for key, r in run.script.rollouts.items() if key.rsplit("_", 2)[0] == uid and r.reward > 0.5]
            stored[question] += new if 0 < step.successes(uid) < K else []
    assert chosen >= 2
    assert otherwise >= 1  # ExGRPO's own rule would have chosen others


def test_the_history_of_refill_names_the_rows_that_were_placed(runs):
    run = runs("history_refill", 3, *AT_ONCE, "method=refill")
    lines = list(read_history(run.folder / "history.jsonl"))
    for line in lines:
        metrics = run.metrics[line["step"]]
        assert len(line["replayed"]) == metrics["experience/replayed_rows"]
        assert sum(sum(choice["taken"]) for choice in line["choices"]) == metrics["experience/drawn_groups"]
    assert sum(len(line["replayed"]) for line in lines) >= 4


def test_switched_off_there_is_no_history(runs):
    run = runs("no_history", 1, *AT_ONCE, "exgrpo.runtime.history_mb=null")
    assert not (run.folder / "history.jsonl").exists()
    assert run.metrics[1]["batch/history_bytes"] == 0


@pytest.mark.parametrize("bound", [10.0, 1e-9], ids=["near", "far"])
def test_headroom_brings_whole_groups_while_the_policy_is_near(runs, model, bound):
    """Successes and failures with the advantages that they had; drift and headroom are what float64 finds."""
    run = runs(f"headroom{bound}", 4, *AT_ONCE, "method=headroom", f"exgrpo.rows.max_drift={bound}")
    seen = {"drawn": 0, "refused": 0}
    for step in steps_of(run, model):
        rows, stored = step.groups.items(), defaultdict(list)
        mixed = [rows for uid, rows in rows if len(rows) == K and 0 < step.successes(uid) < K]
        for key, source in step.sources.items():
            stored[source.question, source.step].append(step.groups[key.rsplit("_", 2)[0]][0])
        metrics = run.metrics[step.number]
        found = [frozen(group) for group in stored.values()]
        assert all(len(group) == K for group in found)
        assert metrics["experience/drawn_groups"] == len(found)
        for name, value in group_scores(model.at(step.updates[0].weights), found).items():
            assert metrics[f"experience/{name}_mean"] == pytest.approx(value, rel=1e-2), name
        check(step, model, [*mixed, *([row] for group in found for row in group)], objective_of(shaping="clip"))
        seen["drawn"] += len(found)
        seen["refused"] += metrics["experience/refused_groups"]
        assert metrics["experience/scoring_calls"] <= 2
    assert (seen["drawn"] > 0, seen["refused"] > 0) == (bound > 1, bound < 1)


def test_grpo_divides_by_the_deviation(runs, model):
    run = runs("grpo", 2, *MOVING, "method=grpo")
    for step in steps_of(run, model):
        groups = []
        for rows in step.groups.values():
            rewards = np.array([row.reward for row in rows])
            scaled = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
            pairs = zip(rows, scaled.tolist(), strict=True)
            groups.append([dataclasses.replace(row, advantage=advantage) for row, advantage in pairs])
        check(step, model, groups, objective_of())
        assert not step.sources


def test_rescue_puts_a_success_into_groups_that_failed_altogether(runs, model):
    """From step 4 on, the second epoch, nothing is solved any more; q4 and q11 never were."""

    def reward(question, step, session):
        return float(step < 4 and session < SOLVED[question])

    run = runs("rescue", 4, *AT_ONCE, "method=rescue", reward=reward)
    rescued = 0
    for step in steps_of(run, model):
        # A stored row has a uid of its own; with the K - 1 rollouts that are left it is the group of its question.
        stored = {s.question: step.groups[key.rsplit("_", 2)[0]][0] for key, s in step.sources.items()}
        groups = []
        for uid, rows in step.groups.items():
            if uid in step.questions:
                past = stored.get(step.questions[uid])
                mean = (sum(row.reward for row in rows) + (past is not None)) / K
                groups.append([dataclasses.replace(row, advantage=row.reward - mean) for row in rows])
                groups[-1] += [] if past is None else [dataclasses.replace(past, advantage=1 - mean)]
                assert len(groups[-1]) == K
        check(step, model, groups, objective_of(shaping="clip"))
        assert run.metrics[step.number]["experience/rescued_groups"] == len(stored)
        rescued += len(stored)
    assert rescued == 4  # q0 to q3, of which each was solved by some


def frozen(group: list[Row]) -> list[Row]:
    """A stored group with the advantages of its own step."""
    mean = sum(row.reward for row in group) / len(group)
    return [dataclasses.replace(row, advantage=row.reward - mean) for row in group]


def group_scores(model: Float64, groups: list[list[Row]]) -> dict[str, float]:
    """Mean over groups of drift and headroom (arXiv 2609.03941), which are means over a group's tokens; 0 without groups."""
    drifts, rooms = [0.0], [0.0]
    for group in groups:
        now = [model.log_probs(row, 1.0) for row in group]
        moved = torch.cat([(x - row.past) ** 2 for x, row in zip(now, group, strict=True)])
        left = torch.cat([1 - x.exp() if row.advantage > 0 else x.exp() for x, row in zip(now, group, strict=True)])
        drifts.append(float(moved.mean()))
        rooms.append(float(left.mean()))
    n = max(1, len(groups))
    return {"drift": sum(drifts) / n, "headroom": sum(rooms) / n}


# ---- guard, checkpoints


def test_updates_above_the_bound_are_skipped(runs):
    run = runs("guard", 1, *AT_ONCE, "exgrpo.runtime.max_grad_norm=1e-9")
    first, second = run.group.updates
    assert all(torch.equal(first.weights[name], value) for name, value in second.weights.items())
    assert run.metrics[1]["actor/skipped_updates"] == 2
    assert run.metrics[1]["actor/grad_norm"] > 1e-9


def test_a_resumed_run_does_what_the_uninterrupted_one_did(runs):
    """Weights, questions, rollouts asked for, stored trajectories and gradients of the steps after the checkpoint."""
    settings = (*AT_ONCE, "trainer.save_freq=2", "exgrpo.bookkeeping.review_interval=2", "exgrpo.rho=0.25")
    whole = runs("whole", 4, *settings)
    shutil.copytree(whole.folder, whole.folder.with_name("resumed"))
    folder = whole.folder.with_name("resumed")
    shutil.rmtree(folder / "global_step_4")
    (folder / "latest_checkpointed_iteration.txt").write_text("2")
    resumed = runs("resumed", 4, *settings)
    assert sorted(resumed.group.rows) == [3, 4]
    assert resumed.script.questions == {step: whole.script.questions[step] for step in (3, 4)}
    for step in (3, 4):
        assert list(resumed.group.rows[step].values()) == list(whole.group.rows[step].values())
    later = [update for update in whole.group.updates if update.step > 2]
    for mine, theirs in zip(resumed.group.updates, later, strict=True):
        assert distance(mine.gradient, {name: value.double() for name, value in theirs.gradient.items()}) < 1e-4
    assert sorted(resumed.metrics) == [1, 2, 3, 4]
    lines = [list(read_history(run.folder / "history.jsonl")) for run in (whole, resumed)]
    assert [(line["step"], line["question"], line["solved"], line["replayed"]) for line in lines[0]] == [
        (line["step"], line["question"], line["solved"], line["replayed"]) for line in lines[1]
    ]
    for name in ("buffer_trajectories", "retired_questions", "reviewed", "replayed_questions", "reuse_max"):
        assert resumed.metrics[4][f"experience/{name}"] == whole.metrics[4][f"experience/{name}"], name
    assert whole.metrics[4]["experience/replayed_questions"] == 1


# ---- the end of a run


def test_a_run_without_validation_ends_quietly(runs, monkeypatch, capsys):
    """verl's last word is "Final validation metrics: None"; with VERBOSE it has it."""
    quiet = (*AT_ONCE, "trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.logger=[console]")
    said = {}
    for value in ("", "1"):
        monkeypatch.setenv("VERBOSE", value)
        runs(f"quiet{value}", 1, *quiet)
        said[value] = capsys.readouterr().out
    assert ["Final validation" in text for text in said.values()] == [False, True]
    assert all("step:1 " in text for text in said.values()), "the metrics of the last step are shown"


# ---- a disk that fills up while verl saves


@pytest.fixture
def small_disk(runs):
    """A file system of 7 MB under the run folder "small", room for one checkpoint of the toy model and not for two."""
    folder = runs.folder / "small"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", folder], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting takes a privilege; test_a_limit_on_files_in_a_save has none of this")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a log may be open


SAVING = ("trainer.save_freq=1", "trainer.max_actor_ckpt_to_keep=1", "exgrpo.start_threshold=null")


def test_a_full_disk_in_a_save_is_named_and_the_same_command_goes_on(runs, small_disk):
    with pytest.raises(SaveError) as failure:
        runs("small", 2, *SAVING)
    text = str(failure.value)
    needed, free = (
        int(found.replace(",", "")) for found in re.findall(r"([\d,]+) (?:bytes are needed|were free)", text)
    )
    assert text.startswith(f"{small_disk}/global_step_2 was not saved, its disk is full: ")
    assert 3_000_000 < needed < 7_000_000
    assert 0 <= free < needed
    assert f"the newest whole checkpoint is {small_disk}/global_step_1" in text
    assert [(found.step, found.problems) for found in checkpoints(small_disk)] == [(1, ())]
    assert tracked_step(small_disk) == 1
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert sorted(runs("small", 2, *SAVING).metrics) == [1, 2]
    assert tracked_step(small_disk) == 2


def test_a_limit_on_files_in_a_save_is_named(runs, monkeypatch):
    """`ulimit -f`, which torch's writer reports as it does a full disk."""
    runs("limited", 1, *SAVING)
    folder, save = runs.folder / "limited", ExGRPOTrainer._save_checkpoint
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(trainer):
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
        try:
            save(trainer)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(ExGRPOTrainer, "_save_checkpoint", limited)
    with pytest.raises(SaveError, match=r"global_step_2 was not saved, no file may have more than 300,000 bytes here"):
        runs("limited", 2, *SAVING)
    assert [(found.step, found.problems) for found in checkpoints(folder)] == [(1, ())]
    assert tracked_step(folder) == 1
