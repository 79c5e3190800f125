"""A whole run (`whole_runs`) as the oracle sees it: its steps, the rows of their updates, and whether a gradient is theirs."""

import dataclasses
from collections import defaultdict

import torch
from oracle import Float64, Found, Objective, Row, gradient
from whole_runs import B, K, Rollout, Run, Update

HORIZON = 64  # data.max_response_length of hardware=tiny
# Two updates per step over the same rows, with weights that move: fresh ratios leave 1 in the second, stored ones before.
MOVING = ("actor_rollout_ref.actor.ppo_epochs=2", "actor_rollout_ref.actor.optim.lr=5e-4", "trainer.save_freq=-1")
AT_ONCE = (*MOVING, "exgrpo.start_threshold=null")


@dataclasses.dataclass
class Step:
    """One step of a run: rows by uid from the script, the sources of stored ones, and the updates."""

    number: int
    groups: dict[str, list[Row]]
    questions: dict[str, str]
    sources: dict[str, Rollout]
    updates: list[Update]

    def fresh(self, uid: str) -> list[Row]:
        return [row for row in self.groups[uid] if row.past is None]

    def successes(self, uid: str) -> int:
        return sum(row.reward > 0.5 for row in self.groups[uid])


def steps_of(run: Run, model: Float64, temperature: float = 1.0) -> list[Step]:
    """Steps of a run. Stored rows are recognised by their response among what the script made in earlier steps.

    pi_past is the model's at the weights that the trajectory's own step began with. Rows of no group are verl's padding.
    """
    script, updates = run.script.rollouts, defaultdict(list)
    for update in run.group.updates:
        updates[update.step].append(update)
    steps = []
    for number, rows in run.group.rows.items():
        step = Step(number, defaultdict(list), {}, {}, updates[number])
        for key, response in rows.items():
            uid = key.rsplit("_", 2)[0]
            if key in script:
                row = Row(script[key].prompt, response, script[key].reward)
                step.questions[uid] = script[key].question
            elif uid.startswith("pad"):
                continue
            else:
                (source,) = [r for r in script.values() if r.response == response and r.step < number]
                step.sources[key] = source
                row = Row(source.prompt, response, source.reward)
                past = model.at(updates[source.step][0].weights).log_probs(row, temperature)
                row = dataclasses.replace(row, past=past)
            step.groups[uid].append(row)
        steps.append(step)
    return steps


def check(step: Step, model: Float64, groups: list[list[Row]], objective: Objective) -> list[Found]:
    """Every update of `step` has the oracle's gradient over `groups`; returns what the oracle found, update by update."""
    model.at(step.updates[0].weights)
    old = {id(row): model.log_probs(row, objective.temperature) for group in groups for row in group}
    found = [gradient(model.at(update.weights), groups, old, objective) for update in step.updates]
    for expected, update in zip(found, step.updates, strict=True):
        assert distance(update.gradient, expected.gradient) < 1e-3, f"step {step.number}"
    return found


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Relative L2 distance of two gradients."""
    off = sum(float((found[name].double() - value).square().sum()) for name, value in expected.items())
    size = sum(float(value.square().sum()) for value in expected.values())
    assert size > 0
    return (off / size) ** 0.5


def objective_of(**changes) -> Objective:
    return dataclasses.replace(Objective(rows=B * K, horizon=HORIZON), **changes)


def row_by_key(step: Step, run: Run) -> dict[str, Row]:
    """Rows of an update by key, each with its advantage: that of its group, or of the group that it was stored from."""
    script, found = run.script.rollouts, {}
    for key, response in run.group.rows[step.number].items():
        source = script.get(key) or step.sources.get(key)
        if source is None:
            continue
        group = [r.reward for r in script.values() if (r.question, r.step) == (source.question, source.step)]
        (row,) = [row for row in step.groups[key.rsplit("_", 2)[0]] if row.response == response]
        found[key] = dataclasses.replace(row, advantage=source.reward - sum(group) / len(group))
    return found
