"""What the trainer tells others by a run's settings, and no gradient feels: workers, waits, agent loop, origin, scoring."""

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from whole_runs import MODEL, row_of

from recipe.exgrpo.core.buffer import Origin, Trajectory
from recipe.exgrpo.trainer.step import Step
from recipe.exgrpo.trainer.trainer import ExGRPOTrainer
from recipe.exgrpo.trainer.worker import ExGRPOWorker
from verl_ext.watchdog import StalledError

pytestmark = pytest.mark.verl


@pytest.fixture
def trainer(compose, tmp_path):
    """trainer(*overrides) -> an ExGRPOTrainer with its data loaded and no workers."""
    data = tmp_path / "train.parquet"
    pd.DataFrame([row_of(f"q{i}") for i in range(4)]).to_parquet(data)

    def build(*overrides: str) -> ExGRPOTrainer:
        found = ExGRPOTrainer(
            compose(
                f"data.train_files={data}",
                f"data.val_files={data}",
                "data.train_batch_size=2",
                "data.filter_overlong_prompts=false",
                f"actor_rollout_ref.model.path={MODEL}",
                f"trainer.default_local_dir={tmp_path}/run",
                *overrides,
            )
        )
        found._init_tokenizer()
        found._init_dataloader()
        return found

    return build


# ---- set-up


def test_the_worker_is_the_one_that_scores_and_guards(trainer):
    found = trainer()
    found._init_resource_pool_mgr()
    assert [worker.__ray_actor_class__ for worker in found.role_worker_mapping.values()] == [ExGRPOWorker]


def test_seeded_rollouts_choose_the_agent_loop_that_seeds(trainer):
    agent = trainer("exgrpo.runtime.seeded_rollouts=true").config.actor_rollout_ref.rollout.agent
    plain = trainer().config.actor_rollout_ref.rollout.agent
    assert (agent.default_agent_loop, plain.default_agent_loop) == ("seeded_single_turn", "single_turn_agent")
    assert "seeded_single_turn" in Path(agent.agent_loop_config_path).read_text()


@pytest.mark.parametrize(("seeded", "expected"), [("false", "tool_agent"), ("true", "seeded_tool")])
def test_a_run_with_tools_gets_the_loop_that_bounds_them(trainer, seeded, expected):
    key = "actor_rollout_ref.rollout.agent"
    found = trainer(f"{key}.default_agent_loop=tool_agent", f"exgrpo.runtime.seeded_rollouts={seeded}").config
    agent = found.actor_rollout_ref.rollout.agent
    (loop,) = [one for one in OmegaConf.load(agent.agent_loop_config_path) if one.name == agent.default_agent_loop]
    assert loop.name == expected
    assert loop._target_ == "verl_ext.tool_loop.BoundedToolAgentLoop"
    own = trainer(f"{key}.agent_loop_config_path=loops.yaml").config.actor_rollout_ref.rollout.agent
    assert own.agent_loop_config_path == "loops.yaml"


def test_the_run_waits_for_rollouts_and_weights_as_long_as_it_says(trainer, transfer_queue):
    found = trainer("exgrpo.runtime.stall_timeout_s=0.2", "exgrpo.runtime.poll_max_s=0.05")
    found.actor_rollout_wg = SimpleNamespace(set_grad_guard=lambda bound: None, set_loss_fn=lambda loss: None)
    found.checkpoint_manager = SimpleNamespace(update_weights=lambda step: time.sleep(20))
    found.global_steps, found.timing_raw = 0, {}
    with pytest.raises(StalledError, match="rollout made no progress"):
        found.replay_buffer.sample(global_steps=1, partition_id="train", batch_size=1)
    for hook in (found.on_init_end, found.on_step_end):
        with pytest.raises(StalledError, match="weight sync made no progress"):
            hook()


def test_new_trajectories_are_stamped_with_template_and_temperature(trainer):
    found = trainer("actor_rollout_ref.rollout.temperature=0.7")
    found._load_checkpoint()
    template = json.dumps([found.tokenizer.chat_template, {}], sort_keys=True)
    assert found.policy.store.origin == Origin("rollout", hashlib.sha256(template.encode()).hexdigest(), 0.7)


def test_arguments_of_the_template_are_part_of_it(trainer):
    plain, asked = trainer(), trainer("+data.apply_chat_template_kwargs.enable_thinking=false")
    for found in (plain, asked):
        found._load_checkpoint()
    assert plain.policy.store.origin != asked.policy.store.origin


# ---- scoring


class Group:
    """A worker group of `ranks` that splits rows evenly, as verl's dispatch does, and keeps what it was told."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self._dispatch_info, self.told = ranks, {}, None

    def _query_dispatch_info(self, mesh: str) -> list[int]:
        assert mesh == "actor"
        return list(range(self.ranks))

    def score_candidates(self, batch: TensorDict) -> TensorDict:
        self.told = {name: tu.get(batch, name) for name in batch.keys() if not torch.is_tensor(batch.get(name))}  # noqa: SIM118
        assert [len(block) for block in tu.chunk_tensordict(batch, self.ranks)] == [
            len(batch) // self.ranks
        ] * self.ranks
        zeros = torch.zeros(len(batch), dtype=torch.float64)
        names = ("entropy", "nll", "probability", "drift")
        return TensorDict(dict.fromkeys(names, zeros) | {"tokens_forwarded": zeros + 1}, batch_size=len(batch))


@pytest.mark.parametrize(
    ("settings", "packed", "max_tokens", "rows"),
    [
        ((), True, 512, 1),
        (("exgrpo.runtime.score_max_tokens=77",), True, 77, 1),
        (("actor_rollout_ref.model.use_remove_padding=false", "exgrpo.runtime.score_max_tokens=8"), False, 8, 2),
    ],
    ids=["packed", "own budget", "padded"],
)
def test_scoring_is_told_how_to_run(trainer, trajectories, settings, packed, max_tokens, rows):
    found = trainer("hardware=tiny", "actor_rollout_ref.rollout.temperature=0.7", *settings)
    found.actor_rollout_wg, found.timing_raw, found.current = Group(2), {}, Step()
    stored = [with_prompt(trajectories(2)) for _ in range(5)]
    scores = found._score(stored)
    assert len(scores.entropy) == 5
    told = found.actor_rollout_wg.told
    expected = {
        "temperature": 0.7,
        "calculate_entropy": True,
        "compute_loss": False,
        "use_dynamic_bsz": packed,
        "max_token_len_per_gpu": max_tokens,
        "micro_batch_size_per_gpu": rows,
    }
    assert {name: told[name] for name in expected} == expected
    assert "score_candidates" in found.timing_raw


def with_prompt(trajectory: Trajectory) -> Trajectory:
    return dataclasses.replace(trajectory, prompt_ids=trajectory.token_ids[:2].copy())
