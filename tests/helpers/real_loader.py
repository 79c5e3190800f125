"""Data files through all that a run does with them before it trains: verl's loader, agent loop and queue, our reward manager.

Only the engine is scripted: to a prompt that ends in "N + 1 = ?" it answers `\\boxed{N + 1}`.
"""

import asyncio
import re
from types import SimpleNamespace

from omegaconf import OmegaConf
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.rollout.replica import TokenOutput

from recipe.exgrpo.trainer.trainer import ExGRPOTrainer
from verl_ext.rewards import compute_score
from verl_ext.rewards.manager import RewardManager

MODEL = "data/toy/model"


class Engine:
    """What the agent loop asks for tokens."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer

    async def generate(self, *, prompt_ids, **_) -> TokenOutput:
        number = int(re.findall(r"(\d+) \+ 1 = \?", self.tokenizer.decode(prompt_ids))[-1])
        ids = self.tokenizer.encode(f"\\boxed{{{number + 1}}}", add_special_tokens=False)
        versions = {"min_global_steps": 0, "max_global_steps": 0}
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), extra_fields=versions)


class Loaded:
    """A trainer with its data loaded, lent everything that a first step and a validation ask for."""

    def __init__(self, config, worker) -> None:
        self.trainer = ExGRPOTrainer(config)
        self.trainer._init_tokenizer()
        self.trainer._init_dataloader()
        self.trainer._init_dump_executor()
        self.trainer.global_steps, self.trainer.timing_raw = 1, {}
        self.trainer.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[object()])
        self.trainer.agent_loop_manager = self
        self.worker = worker
        tokenizer = self.trainer.tokenizer
        vars(worker).update(
            config=self.trainer.config,
            background_tasks=set(),
            tokenizer=tokenizer,
            llm_client=Engine(tokenizer),
            hf_model_type=self.trainer.model_type,
            dataset_cls=RLHFDataset,
            tools=[],
        )

    def generate_sequences(self, batch) -> None:
        """verl's worker in this process, and the reward loop of its loop's thread."""

        async def run():
            manager = RewardManager(self.trainer.config, self.trainer.tokenizer, compute_score)
            graded = SimpleNamespace(compute_score=SimpleNamespace(remote=manager.run_single))
            self.worker.reward_loop_worker_handles = [graded]
            await self.worker.generate_sequences(batch)
            await asyncio.gather(*self.worker.background_tasks)

        asyncio.run(run())

    def train(self) -> list[float]:
        """Rewards of the rollouts of a first step."""
        trainer = self.trainer
        trainer.prepare_step()
        size = trainer.config.data.train_batch_size
        batch, _ = trainer.replay_buffer.sample(global_steps=1, partition_id="train", batch_size=size)
        trainer.current.open(batch)
        return [reward for group in trainer.current.groups for reward in group.fresh_rewards]

    def validate(self) -> float:
        """`val/pass_rate` of a validation."""
        return self.trainer._validate()["val/pass_rate"]


def close(worker) -> None:
    """What another test finds in verl's worker."""
    for name in ("config", "background_tasks", "tokenizer", "llm_client", "hf_model_type", "dataset_cls", "tools"):
        vars(worker).pop(name, None)
    worker.reward_loop_worker_handles = None


def merged(config, **overrides):
    """A configuration of its own: the trainer changes the one it is given."""
    return OmegaConf.merge(config, OmegaConf.from_dotlist([f"{key}={value}" for key, value in overrides.items()]))
