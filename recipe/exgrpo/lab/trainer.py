"""One run: the steps of `trainer.trainer` on a tiny model, driving the same policy with the same fine print.

Per step: plan, roll out, inject, log-probs of pi_old by the training model, group advantages, two updates, book-keeping.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from recipe.exgrpo.core.advantage import group_advantages
from recipe.exgrpo.core.buffer import Response, Trajectory
from recipe.exgrpo.core.config import ExGRPOConfig, LossConfig
from recipe.exgrpo.core.loss import ClipRange
from recipe.exgrpo.core.policies import make_policy
from recipe.exgrpo.core.policies.policy import Arrangement, Group, Member, Placed, Slot, Tools, without_signal
from recipe.exgrpo.core.selection import Scores, headroom, token_means
from recipe.exgrpo.lab import teacher
from recipe.exgrpo.lab.families import Family
from recipe.exgrpo.lab.model import TinyTransformer, prompt_ids, response_ids, response_scores, sample
from recipe.exgrpo.lab.questions import Splits, Stream, make_splits
from recipe.exgrpo.lab.rows import Objective, Row, batch_loss, tensors_of
from recipe.exgrpo.lab.turns import turns_of
from recipe.exgrpo.lab.vocabulary import Vocabulary

PASS_ROWS = 16  # sequences of like length in one training or scoring pass: few enough to waste little on padding
EVALUATED_QUESTIONS = 64  # held-out questions in one sampling pass


@dataclass(frozen=True)
class LabSettings:
    """What all variants of a study share.

    `questions` and `group_size` are B and K. Evaluation is pass@1 at temperature 1 on the held-out questions: `eval_samples`
    each at the start and every `eval_every` steps, `final_samples` each at the end. `learning_rate: None` is the family's own.
    """

    steps: int = 150
    questions: int = 16
    group_size: int = 8
    mini_batches: int = 2
    learning_rate: float | None = None
    entropy_coeff: float = 0.001
    grad_clip: float = 1.0
    eval_every: int = 10
    eval_samples: int = 2
    final_samples: int = 8
    train_questions: int = 512
    heldout_questions: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and (value < 0 or (value == 0 and name not in ("entropy_coeff", "steps"))):
                raise ValueError(f"lab.{name} must be positive; got {value}.")
        if self.questions % self.mini_batches:
            raise ValueError(f"lab.mini_batches ({self.mini_batches}) must divide lab.questions ({self.questions}).")

    @property
    def splits(self) -> Splits:
        return Splits(self.train_questions, self.heldout_questions)


@dataclass(frozen=True)
class Batch:
    """Rows of a step's update: those of its groups, of which `out` are out of it, and those on top.

    `uncounted` are out of the denominator as well.
    """

    rows: list[Row]
    extra: list[Row]
    out: int = 0
    uncounted: int = 0


@dataclass
class Costs:
    """What a run has spent so far. Tokens are positions of responses: sampled, updated on, and scored for selection.

    `updated_sequences` and `updated_tokens` are those of rows in the update, stored ones on top of the batch included.
    """

    fresh_rollouts: int = 0
    sampled_tokens: int = 0
    updated_sequences: int = 0
    updated_tokens: int = 0
    scored_tokens: int = 0
    seconds: float = 0.0


class Lab:
    """A run of one variant: `config` decides everything but the model, the task and the settings.

    `seed` decides the order of questions and every sampled token; `config.seed` is replaced by it beforehand (see `grid`).
    """

    def __init__(
        self, config: ExGRPOConfig, settings: LabSettings, task: Family, model: TinyTransformer, seed: int
    ) -> None:
        self.config, self.settings, self.task, self.model = config, settings, task, model
        self.vocabulary = Vocabulary(task.pieces)
        self.turns = turns_of(task, self.vocabulary)
        train, self.heldout = make_splits(task, settings.splits)
        self.train = {task.prompt(question): question for question in train}
        self.prompts = {text: self.vocabulary.encode(text) for text in self.train}
        self.stream = Stream(list(self.train), np.random.default_rng(seed))
        self.generator = torch.Generator().manual_seed(seed)
        learning_rate = settings.learning_rate or task.learning_rate
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
        self.policy = make_policy(config, settings.group_size)
        self.costs = Costs()
        if config.experience.init_from and self.policy.store is not None:
            self.learn_from_teacher(seed)

    def learn_from_teacher(self, seed: int) -> None:
        """Start with a perfect teacher's traces in the store, scored by the start model unless `importance: none`."""
        rows = list(teacher.solutions(self.task, self.vocabulary, self.train, self.prompts, seed))
        if self.config.experience.importance == "scored":
            self.write_behaviour(rows)
        teacher.store(rows, self.policy.store)

    def step(self, step: int) -> dict[str, float]:
        """Train one step; returns its metrics."""
        begun, policy = time.process_time(), self.policy
        slots, rows, sampling = self.sample(policy.plan(self.settings.questions, self.stream))
        groups = [group_of(slot, members) for slot, members in zip(slots, rows, strict=True)]
        pass_rate = float(np.mean([reward for group in groups for reward in group.fresh_rewards]))
        own = list(map(list, rows))  # stored ones may take their places in `rows`
        tools = Tools(
            score=self.score,
            read=lambda members: [response_of(own[i][j]) for i, j in members],
            entropies=lambda members: [entropies_of(own[i][j]) for i, j in members],
        )
        for i, trajectories in policy.inject(groups, tools, step).items():
            groups[i].joined += trajectories
            rows[i] += [self.joined_row(trajectory) for trajectory in trajectories]
        self.write_behaviour([row for members in rows for row in members])
        write_advantages(rows, policy.by_std)
        arrangement = policy.arrange(groups, tools, step)
        silent = without_signal(groups, arrangement) if self.loss.denominator == "mixed" else ()
        batch = arranged(arrangement, rows, silent)
        metrics = self.update(batch)
        policy.finish(groups, tools, step, pass_rate)
        self.costs.seconds += time.process_time() - begun
        experience = policy.metrics(step) | {"extra_rows": len(batch.extra)}
        return (
            {"batch/pass_rate": pass_rate, "batch/rows_out_of_update": float(batch.out)}
            | {"batch/rows_updated": float(len(batch.rows) + len(batch.extra) - batch.out)}
            | {"batch/rows_out_of_denominator": float(batch.uncounted)}
            | sampling
            | metrics
            | {f"experience/{name}": float(value) for name, value in experience.items()}
        )

    def joined_row(self, trajectory: Trajectory) -> Row:
        """A stored trajectory among its question's fresh rollouts; pi_past or, without importance correction, pi_old."""
        past = trajectory.log_probs if self.loss.importance == "past" else None
        prompt, ids = self.prompts[trajectory.question], trajectory.token_ids.tolist()
        return Row(trajectory.question, prompt, ids, trajectory.reward, True, past, own=trajectory.mask)

    @property
    def loss(self) -> LossConfig:
        """The policy's, or for a policy without one the clipped loss that verl has."""
        return LossConfig() if self.policy.loss is None else self.policy.loss

    def sample(self, slots: Sequence[Slot]) -> tuple[list[Slot], list[list[Row]], dict[str, float]]:
        """Slots of the step with their rollouts, and what it took to get them; `slots` themselves without dynamic sampling."""
        asked, pairs = list(slots), list(zip(slots, self.roll_out(slots), strict=True))
        if self.config.dynamic_sampling:
            pairs = self._until_full(pairs, asked)
        taken = {
            "batch/generated_rollouts": float(sum(slot.rollouts for slot in asked)),
            "batch/discarded_groups": float(len(asked) - len(pairs)),
        }
        return [slot for slot, _ in pairs], [rows for _, rows in pairs], taken

    def _until_full(self, pairs: list[tuple[Slot, list[Row]]], asked: list[Slot]) -> list[tuple[Slot, list[Row]]]:
        """The first groups whose rewards differ, as many as a step has; `asked` grows by the questions that are drawn for it.

        As verl's V1 sampler: for each group without variance two more are asked for, never more than a batch at a time, and
        surplus is dropped. Once all questions were drawn, the first groups without variance fill up the step.
        """
        size, credit, most = len(pairs), 0, len(pairs) + len(self.stream)
        kept: list[tuple[Slot, list[Row]]] = []
        flat: list[tuple[Slot, list[Row]]] = []
        while True:
            differ = [len({row.reward for row in rows}) > 1 for _, rows in pairs]
            kept += [pair for pair, varied in zip(pairs, differ, strict=True) if varied]
            flat += [pair for pair, varied in zip(pairs, differ, strict=True) if not varied]
            if len(kept) >= size or len(asked) >= most:
                return [*kept, *flat][:size]
            credit += 2 * differ.count(False)
            more = [self.policy.draw(self.stream) for _ in range(min(credit, size))]
            credit -= len(more)
            asked += more
            pairs = list(zip(more, self.roll_out(more), strict=True))

    def roll_out(self, slots: Sequence[Slot]) -> list[list[Row]]:
        """Fresh rollouts of every slot, graded, one group a slot."""
        prompts = [self.prompts[slot.question] for slot in slots]
        counts = [slot.rollouts for slot in slots]
        responses = iter(sample(self.model, self._columns(prompts), counts, self.generator, self.turns))
        groups = []
        for slot, prompt in zip(slots, prompts, strict=True):
            texts = [next(responses) for _ in range(slot.rollouts)]
            groups.append([self.fresh_row(slot.question, prompt, ids) for ids in texts])
            self.costs.sampled_tokens += sum(map(len, texts))
            self.costs.fresh_rollouts += slot.rollouts
        return groups

    def fresh_row(self, question: str, prompt: Sequence[int], response: Sequence[int]) -> Row:
        """A rollout, graded, and which of its tokens the model wrote."""
        own = None if self.turns is None else self.turns.own(response)
        return Row(question, prompt, response, self.reward(question, response), own=own)

    def reward(self, question: str, response: Sequence[int]) -> float:
        return float(self.task.grade(self.train[question], self.vocabulary.decode(response)))

    @torch.no_grad()
    def score(self, candidates: Sequence[Trajectory]) -> Scores:
        """Scores of stored responses under the current policy (section 4.1)."""
        means = {name: np.empty(len(candidates)) for name in ("entropy", "nll", "probability", "drift")}
        for places in by_length([candidate.token_ids for candidate in candidates]):
            chunk = [candidates[i] for i in places]
            responses = response_ids([candidate.token_ids for candidate in chunk])
            prompts = self._columns([self.prompts[candidate.question] for candidate in chunk])
            past, mask = (
                pad_sequence([torch.as_tensor(part) for part in parts], batch_first=True)
                for parts in ([c.log_probs for c in chunk], [c.mask for c in chunk])
            )
            found = token_means(*response_scores(self.model, prompts, responses), past, mask)
            for name, values in found.items():
                means[name][places] = values.numpy()
        self.costs.scored_tokens += sum(len(candidate.token_ids) for candidate in candidates)
        advantages = [candidate.provenance.advantage for candidate in candidates]
        return Scores(means["entropy"], means["nll"], headroom(means["probability"], advantages), means["drift"])

    @torch.no_grad()
    def write_behaviour(self, rows: list[Row]) -> None:
        """Log-probs and entropies of pi_old by the training model, on rows that do not bring log-probs of their past policy."""
        fresh = [row for row in rows if row.behaviour is None]
        for places in by_length([row.response for row in fresh]):
            chunk = [fresh[i] for i in places]
            responses = response_ids([row.response for row in chunk])
            found = response_scores(self.model, self._columns([row.prompt for row in chunk]), responses)
            for row, log_probs, entropies in zip(chunk, *(values.numpy() for values in found), strict=True):
                row.behaviour = log_probs[: len(row.response)].copy()
                row.entropies = entropies[: len(row.response)].copy()

    def update(self, batch: Batch) -> dict[str, float]:
        """One optimizer step a mini-batch: a stretch of whole groups, and its share of the extra rows.

        Every mini-batch is divided by the same number of sequences, however many of the extra rows it got.
        """
        settings, parts = self.settings, self.settings.mini_batches
        asked = settings.questions * settings.group_size
        counted = asked if self.loss.denominator == "all" else max(1, len(batch.rows) - batch.uncounted)
        size, sequences = asked // parts, (counted + len(batch.extra)) / parts
        stretches = [[*batch.rows[i * size : (i + 1) * size], *batch.extra[i::parts]] for i in range(parts)]
        found = [self._mini_batch(rows, sequences) for rows in stretches]
        self._count_updated([*batch.rows, *batch.extra])
        return {f"actor/{name}": float(np.mean([metrics[name] for metrics in found])) for name in found[0]}

    def _count_updated(self, rows: Sequence[Row]) -> None:
        """Add the costs of an update on `rows`."""
        kept = [len(row.response) for row in rows if row.in_update]
        self.costs.updated_sequences += len(kept)
        self.costs.updated_tokens += sum(kept)

    def _mini_batch(self, rows: list[Row], sequences: float) -> dict[str, float]:
        objective = Objective(
            self.loss,
            ClipRange(),
            self.settings.entropy_coeff,
            sequences,
            self.task.response_tokens,
            self.policy.active,
        )
        # A row out of the update is left out of the forward pass as well; `objective.sequences` still counts it.
        kept = [row for row in rows if row.in_update]
        terms = {"pg_loss": 0.0, "entropy_loss": 0.0}
        self.optimizer.zero_grad(set_to_none=False)  # without a row left the optimizer still steps, as verl's does
        for places in by_length([row.response for row in kept]):
            data = tensors_of([kept[i] for i in places], self.model.shape.prompt)
            loss, found = batch_loss(*response_scores(self.model, data.prompts, data.responses), data, objective)
            loss.backward()
            terms = {name: value + found[name] for name, value in terms.items()}
        return terms | self._optimizer_step()

    def _optimizer_step(self) -> dict[str, float]:
        """Clip and step, unless the gradient is beyond `runtime.max_grad_norm`."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip))
        bound = self.config.runtime.max_grad_norm
        skipped = not np.isfinite(norm) or (bound is not None and norm > bound)
        if not skipped:
            self.optimizer.step()
        return {"grad_norm": norm, "skipped_updates": float(skipped)}

    def evaluate(self, samples: int, seed: int = 0) -> float:
        """Pass@1 on the held-out questions from a generator of its own: evaluating changes nothing in the run."""
        generator, solved = torch.Generator().manual_seed(seed), []
        for i in range(0, len(self.heldout), EVALUATED_QUESTIONS):
            questions = self.heldout[i : i + EVALUATED_QUESTIONS]
            prompts = [self.vocabulary.encode(self.task.prompt(question)) for question in questions]
            responses = sample(self.model, self._columns(prompts), [samples] * len(prompts), generator, self.turns)
            texts = [self.vocabulary.decode(response) for response in responses]
            solved += [self.task.grade(questions[j // samples], text) for j, text in enumerate(texts)]
        return float(np.mean(solved))

    def _columns(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        return prompt_ids(prompts, self.model.shape.prompt)


def by_length(responses: Sequence[Sequence[int]]) -> list[list[int]]:
    """Places of `responses` in passes of `PASS_ROWS`, shortest first, so that a pass holds little padding.

    Nothing depends on the cut: losses and scores are sums over tokens divided by constants or by a row's own length.
    """
    order = sorted(range(len(responses)), key=lambda i: len(responses[i]))
    return [order[i : i + PASS_ROWS] for i in range(0, len(order), PASS_ROWS)]


def group_of(slot: Slot, fresh: Sequence[Row]) -> Group:
    """A group's outcome as a policy sees it."""
    return Group(slot.question, [row.reward for row in fresh], planned=slot.planned)


def response_of(row: Row) -> Response:
    """A rollout as a policy stores it; ValueError before its log-probs are known."""
    if row.behaviour is None:
        raise ValueError(f"the log-probs of a rollout of {row.question!r} are not known yet")
    return Response(row.response, row.behaviour, row.own, row.prompt)


def entropies_of(row: Row) -> np.ndarray:
    """Entropies of a rollout's own tokens under pi_old; ValueError before they are known."""
    if row.entropies is None:
        raise ValueError(f"the entropies of a rollout of {row.question!r} are not known yet")
    return row.entropies[row.own_places]


def arranged(arrangement: Arrangement, groups: list[list[Row]], silent: Sequence[Member] = ()) -> Batch:
    """The update: rows of `groups` in order, stored ones in freed places and on top, out of it or with other advantages.

    Members `silent` leave it and its denominator, unless a stored row stands there.
    """
    arrangement.check(sum(map(len, groups)))
    for (i, j), placed in zip(arrangement.leave, arrangement.place, strict=False):
        groups[i][j] = stored_row(placed)
    replaced = set(arrangement.leave[: len(arrangement.place)])
    uncounted = set(silent) - replaced
    out = uncounted | set(arrangement.leave) - replaced
    for i, j in out:
        groups[i][j].in_update = False
    for (i, j), advantage in arrangement.advantages.items():
        groups[i][j].advantage = advantage
    rows, extra = [row for members in groups for row in members], [stored_row(placed) for placed in arrangement.extra]
    return Batch(rows, extra, len(out), len(uncounted))


def stored_row(placed: Placed) -> Row:
    """A stored trajectory as a row of its own, with its prompt, pi_past and frozen advantage."""
    past = placed.trajectory
    return Row(
        past.question, past.prompt_ids.tolist(), past.token_ids.tolist(), past.reward,
        is_replayed=True, behaviour=past.log_probs, advantage=placed.advantage, own=past.mask,
    )  # fmt: skip


def write_advantages(groups: list[list[Row]], by_std: bool = False) -> None:
    """Dr.GRPO advantages over the mixed groups (Eq. 2), or GRPO's."""
    rows = [row for group in groups for row in group]
    owners = np.array([i for i, group in enumerate(groups) for _ in group])
    advantages = group_advantages(torch.tensor([row.reward for row in rows]), owners, normalize_by_std=by_std)
    for row, advantage in zip(rows, advantages.tolist(), strict=True):
        row.advantage = advantage
