"""Whole runs in this process: verl's loop, queue, worker, engine and checkpoints are real, only the rollout engine is scripted.

What comes out is held against float64 by hand (`oracle.py`): nothing here reads the rows that the trainer wrote, but for which
stored trajectory stands in a group.
"""

import asyncio
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
import transfer_queue as tq
from transformers import AutoTokenizer
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss

from recipe.exgrpo.trainer.trainer import ExGRPOTrainer
from verl_ext.metrics_log import read_metrics

K, B = 4, 4
READ = ("response_mask", "loss_mask", "advantages", "rollout_log_probs", "num_turns", "is_replayed", "in_update")
MODEL = "data/toy/model"
# Question -> successes among K fresh rollouts, by session: the first ones.
SOLVED = {"q0": 2, "q1": 1, "q2": 3, "q3": 4, "q4": 0, "q5": 2, "q6": 1, "q7": 3, "q8": 2, "q9": 1, "q10": 4, "q11": 0}
SIZES = (
    f"data.train_batch_size={B}",
    f"actor_rollout_ref.actor.ppo_mini_batch_size={B}",
    f"actor_rollout_ref.rollout.n={K}",
    f"actor_rollout_ref.model.path={MODEL}",
    "hardware=tiny",
    "data.shuffle=false",
    "data.filter_overlong_prompts=false",  # takes a process
)


@dataclass(frozen=True)
class Rollout:
    """One scripted rollout: ids of prompt and response, its reward, the step it was generated in, and 0 on a tool's tokens."""

    question: str
    step: int
    prompt: list[int]
    response: list[int]
    reward: float
    mask: tuple[int, ...]


@dataclass(frozen=True)
class Update:
    """One optimizer step: weights before it, and the gradient that the engine had made, by parameter, on the CPU."""

    step: int
    weights: dict[str, torch.Tensor]
    gradient: dict[str, torch.Tensor]


@dataclass
class Script:
    """verl's agent loop without an engine: response and reward are functions of (question, step, session).

    Those of sessions in `lost` fail; `mask` is 0 on what a tool wrote. `rollouts` holds what was generated, by the key of its
    row.
    """

    worker: object
    reward: Callable[[str, int, int], float] = lambda question, step, session: float(session < SOLVED[question])
    lost: Callable[[str, int, int], bool] = lambda question, step, session: False
    mask: Callable[[str, int, int], tuple[int, ...] | None] = lambda question, step, session: None
    rollouts: dict[str, Rollout] = field(default_factory=dict)
    questions: dict[int, list[str]] = field(default_factory=dict)

    def generate_sequences(self, batch) -> None:
        infos = [getattr(info, "data", info) for info in batch["extra_info"]]
        # Asked for more than once in a step where groups are sampled anew.
        self.questions.setdefault(int(batch["global_steps"]), []).extend(info["question_id"] for info in infos)

        async def run():
            await self.worker.generate_sequences(batch)
            await asyncio.gather(*self.worker.background_tasks)

        asyncio.run(run())

    async def answer(self, sampling_params, *, trajectory, trace, session_id, **columns) -> None:
        from verl.experimental.agent_loop import AgentLoopOutput

        question, step = columns["extra_info"]["question_id"], int(columns["global_steps"])
        if self.lost(question, step, session_id):
            raise RuntimeError("a session that fails")
        response = response_of(question, step, session_id)
        mask = self.mask(question, step, session_id) or (1,) * len(response)
        reward = self.reward(question, step, session_id)
        rollout = Rollout(question, step, prompt_of(question), response, reward, mask)
        self.rollouts[f"{columns['uid']}_{session_id}_0"] = rollout
        output = AgentLoopOutput(
            prompt_ids=rollout.prompt,
            response_ids=response,
            response_mask=list(mask),
            # Of an engine that is far off, and 0 where it sampled nothing.
            response_logprobs=[-own * (0.5 + 0.1 * i) for i, own in enumerate(mask)],
            reward_score=rollout.reward,
            num_turns=1 + len(list(groupby(mask))),
            metrics={"generate_sequences": 0.5},
            extra_fields={
                "reward_extra_info": {"acc": rollout.reward},
                "turn_scores": [],
                "tool_rewards": [],
                "min_global_steps": step - 1,
                "max_global_steps": step - 1,
            },
        )
        await self.worker._agent_loop_postprocess(output, False, session_id=session_id, **columns)


def response_of(question: str, step: int, session: int) -> list[int]:
    """Ids of a response: a function of where it comes from, 2 to 6 tokens."""
    rng = np.random.default_rng([int(question.removeprefix("q")), step, session])
    return rng.integers(0, 280, size=rng.integers(2, 7)).tolist()


def prompt_of(question: str) -> list[int]:
    """Ids of a question's prompt, as the chat template puts it."""
    chat = [{"role": "user", "content": f"question {question}"}]
    ids = AutoTokenizer.from_pretrained(MODEL).apply_chat_template(chat, add_generation_prompt=True)
    return list(ids["input_ids"] if hasattr(ids, "keys") else ids)


class InProcess:
    """A worker group of one: calls reach verl's worker in this process as Ray would bring them. Notes every update."""

    def __init__(self, worker) -> None:
        self.worker, self.updates, self.rows, self.step = worker, [], {}, 0
        self.fields: dict[int, dict[str, dict]] = {}
        self.sequences: dict[int, float] = {}
        self._dispatch_info: dict = {}
        engine = worker.actor.engine
        guarded = engine.optimizer_step

        def optimizer_step():
            gradient = {name: full(p.grad) for name, p in engine.module.named_parameters()}
            self.updates.append(Update(self.step, self.weights(), gradient))
            return guarded()

        engine.optimizer_step = optimizer_step
        self.restore = lambda: setattr(engine, "optimizer_step", guarded)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: full(p) for name, p in self.worker.actor.engine.module.named_parameters()}

    def _query_dispatch_info(self, mesh: str) -> list[int]:
        return [0]

    def update_actor(self, batch):
        """verl's; of every row by step and key, in the order of the update: `rows` keeps the response, `fields` what else
        the loss reads and what verl's metrics do."""
        self.step = batch.tags[0]["global_steps"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["responses", *READ])
        self.rows[self.step] = {key: data["responses"][i].tolist() for i, key in enumerate(batch.keys)}
        self.fields[self.step] = {
            key: {name: column[i] for name, column in data.items()} for i, key in enumerate(batch.keys)
        }
        self.sequences[self.step] = batch.extra_info.get("sequences")
        return self.worker.update_actor(batch)

    def __getattr__(self, name: str):
        return getattr(self.worker, name)


def full(tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


@dataclass
class Run:
    """A finished run."""

    trainer: ExGRPOTrainer
    script: Script
    group: InProcess
    folder: Path

    @property
    def metrics(self) -> dict[int, dict]:
        """What metrics.jsonl holds, by step."""
        return {row["step"]: row for row in read_metrics(self.folder / "metrics.jsonl")[0]}


class Runs:
    """Runs on one worker: weights, optimizer and verl's own loss are put back before each."""

    def __init__(self, worker, agent_loop_worker, compose, folder: Path) -> None:
        self.worker, self.agent_loop_worker, self.compose, self.folder = worker, agent_loop_worker, compose, folder
        engine = worker.actor.engine
        self.start = copy.deepcopy(engine.module.state_dict()), copy.deepcopy(engine.optimizer.state_dict())
        self.data = folder / "train.parquet"
        pd.DataFrame([row_of(question) for question in SOLVED]).to_parquet(self.data)

    def __call__(self, name: str, steps: int, *overrides: str, **script) -> Run:
        """Train for `steps` in the folder `name`, from its newest checkpoint if it has any."""
        folder = self.folder / name
        config = self.compose(
            *SIZES,
            f"data.train_files={self.data}",
            f"data.val_files={self.data}",
            f"trainer.default_local_dir={folder}",
            f"trainer.total_training_steps={steps}",
            *overrides,
        )
        self.reset(config)
        trainer = ExGRPOTrainer(config)
        trainer._init_tokenizer()
        trainer._init_dataloader()
        trainer._init_dump_executor()
        group = InProcess(self.worker)
        try:
            self.lend(trainer, group)
            trainer._load_checkpoint()
            trainer.on_init_end()
            found = Script(self.agent_loop_worker, **script)
            lent = {"config": config, "background_tasks": set(), "_run_agent_loop": found.answer}
            vars(self.agent_loop_worker).update(lent)
            trainer.fit(found)
        finally:
            group.restore()
            clear_queue()
        return Run(trainer, found, group, folder)

    def reset(self, config) -> None:
        actor = self.worker.actor
        actor.engine.module.load_state_dict(self.start[0])
        actor.engine.optimizer.load_state_dict(copy.deepcopy(self.start[1]))
        for settings in actor.engine.optimizer.param_groups:
            settings["lr"] = config.actor_rollout_ref.actor.optim.lr
        # As verl's worker does when it starts; here one worker has many runs.
        actor.set_loss_fn(partial(ppo_loss, config=omega_conf_to_dataclass(config.actor_rollout_ref.actor)))
        actor.guard.max_norm = None

    @staticmethod
    def lend(trainer: ExGRPOTrainer, group: InProcess) -> None:
        """What verl's `_setup` makes with Ray."""
        trainer.actor_rollout_wg = group
        trainer.distillation_config = None
        trainer.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[object()])  # graded in the rollout
        trainer.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: 1)
        trainer.checkpoint_manager = SimpleNamespace(update_weights=lambda step: None, sleep_replicas=lambda: None)


def row_of(question: str) -> dict:
    return {
        "data_source": "toy",
        "prompt": [{"role": "user", "content": f"question {question}"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": question},
        "extra_info": {"split": "train", "index": int(question[1:]), "question_id": question},
    }


def clear_queue() -> None:
    for partition, rows in (tq.kv_list() or {}).items():
        if rows:
            tq.kv_clear(keys=list(rows), partition_id=partition)


def sessions(keys: Sequence[str], uid: str) -> list[int]:
    """Sessions of a group, ascending."""
    return sorted(int(key.rsplit("_", 2)[1]) for key in keys if key.rsplit("_", 2)[0] == uid)
