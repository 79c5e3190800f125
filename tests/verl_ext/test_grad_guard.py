"""The gradient guard around verl's own FSDP2 engine, with a real (tiny) model over gloo."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from tensordict import TensorDict
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig

from verl_ext.grad_guard import GradGuard, GuardedTrainingWorker

pytestmark = pytest.mark.verl

VOCABULARY = 32


def make_model(folder) -> str:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.BPE(vocab={f"t{i}": i for i in range(VOCABULARY)}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="t0", eos_token="t1").save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=1, max_position_embeddings=64, **sizes)
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def make_worker(model: str, rows: int = 2) -> GuardedTrainingWorker:
    """A worker that computes `rows` rows at a time."""
    full = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    engine = {"strategy": "fsdp2", "use_torch_compile": False, "mixed_precision": full, "use_dynamic_bsz": False}
    worker = GuardedTrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=HFModelConfig(
                path=model,
                use_remove_padding=False,
                enable_gradient_checkpointing=False,
                override_config={"attn_implementation": "sdpa"},
            ),
            engine_config=FSDPEngineConfig(micro_batch_size_per_gpu=rows, **engine),
            optimizer_config=FSDPOptimizerConfig(lr=1e-2, clip_grad=1.0, total_training_steps=10),
            checkpoint_config=CheckpointConfig(),
        )
    )
    worker.reset()
    return worker


def batch(rows: int) -> TensorDict:
    generator = torch.Generator().manual_seed(1)

    def nested(sequences):
        return torch.nested.as_nested_tensor(list(sequences), layout=torch.jagged)

    ids = [torch.randint(2, VOCABULARY, (6,), generator=generator) for _ in range(rows)]
    data = TensorDict(
        {
            "input_ids": nested(ids),
            "position_ids": nested(torch.arange(6) for _ in ids),
            "loss_mask": nested(torch.ones(4, dtype=torch.int64) for _ in ids),
            "prompts": nested(row[:2] for row in ids),
            "responses": nested(row[2:] for row in ids),
            "response_mask": nested(torch.ones(4, dtype=torch.int64) for _ in ids),
        },
        batch_size=rows,
    )
    tu.assign_non_tensor(
        data, temperature=1.0, mini_batch_size=2, epochs=1, seed=0, dataloader_kwargs={"shuffle": False}
    )
    return data


class ScaledLoss:
    """Negative log-likelihood times a factor per call (the last one repeats): sets the gradient's size, or breaks it."""

    def __init__(self, *factors: float):
        self.factors = list(factors)

    def __call__(self, model_output, data, dp_group=None):
        factor = self.factors.pop(0) if len(self.factors) > 1 else self.factors[0]
        return -factor * model_output["log_probs"].values().mean(), {}


def parameters(worker) -> torch.Tensor:
    return torch.cat([p.detach().full_tensor().flatten() for p in worker.engine.module.parameters()]).clone()


def update(worker, *factors: float, rows: int = 2) -> dict:
    """Metrics of the updates on `rows` rows of this rank, two rows of all ranks an update."""
    worker.set_loss_fn(ScaledLoss(*factors))
    return tu.get(worker.train_mini_batch(batch(rows)), "metrics")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def worker(model):
    set_rank(0, 1, free_port())
    yield make_worker(model)
    torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def no_bound(request):
    if "worker" in request.fixturenames:
        request.getfixturevalue("worker").guard.max_norm = None


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def set_rank(rank: int, world: int, port: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0", LOCAL_WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def test_an_ordinary_update_is_applied_and_is_verls_own(worker):
    before = parameters(worker)
    metrics = update(worker, 1.0)
    assert metrics["skipped_updates"] == [0.0]
    assert 0 < metrics["grad_norm"][0] < 100
    assert not torch.equal(parameters(worker), before)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_is_skipped_and_counted(worker, factor):
    before = parameters(worker)
    assert update(worker, factor)["skipped_updates"] == [1.0]
    assert torch.equal(parameters(worker), before)


def test_a_norm_over_the_bound_is_skipped_and_leaves_no_gradient(worker):
    norm = update(worker, 1.0)["grad_norm"][0]
    worker.guard.max_norm = norm / 2
    before, state = parameters(worker), worker.engine.optimizer.state_dict()["state"]
    steps = [float(value["step"]) for value in state.values()]
    metrics = update(worker, 1.0)
    assert metrics["skipped_updates"] == [1.0]
    assert metrics["grad_norm"][0] > worker.guard.max_norm  # the norm before clipping is still reported
    assert torch.equal(parameters(worker), before)
    assert [float(value["step"]) for value in worker.engine.optimizer.state_dict()["state"].values()] == steps
    assert all(p.grad is None or not p.grad.full_tensor().any() for p in worker.engine.module.parameters())


def test_the_bound_is_on_the_norm_before_clipping_and_inclusive(worker):
    norm = update(worker, 1000.0)["grad_norm"][0]
    assert norm > 1.0  # the clip
    before = parameters(worker)
    worker.guard.max_norm = norm * 2
    assert update(worker, 1000.0)["skipped_updates"] == [0.0]
    assert not torch.equal(parameters(worker), before)


def test_each_update_of_a_step_is_counted_alone(worker):
    metrics = update(worker, float("nan"), 1.0, float("nan"), 1.0, rows=8)
    assert metrics["skipped_updates"] == [1.0, 0.0, 1.0, 0.0]


def test_the_optimizer_is_the_real_one_between_updates(worker):
    update(worker, 1.0)
    assert isinstance(worker.engine.optimizer, torch.optim.Optimizer)


def test_guarded_updates_equal_unguarded_ones(worker):
    """With no skip, the guard changes nothing: same parameters as verl's optimizer_step, bit for bit."""
    from copy import deepcopy

    engine = worker.engine
    start = deepcopy(engine.module.state_dict()), deepcopy(engine.optimizer.state_dict())
    update(worker, 1.0, rows=4)
    guarded = parameters(worker)
    engine.module.load_state_dict(start[0])
    engine.optimizer.load_state_dict(start[1])
    engine.optimizer_step = type(engine).optimizer_step.__get__(engine)
    try:
        update(worker, 1.0, rows=4)
    finally:
        engine.optimizer_step = worker.guard.optimizer_step
    assert torch.equal(parameters(worker), guarded)


def test_another_engine_is_refused():
    with pytest.raises(TypeError, match="not with object"):
        GradGuard(object())


def test_two_ranks_decide_alike_and_report_one_value_an_update(model):
    """A gradient that is broken on one rank only is skipped on both."""
    port = str(free_port())
    command = [sys.executable, __file__, model, port]
    ranks = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in (0, 1)]
    outputs = [process.communicate(timeout=240)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    last = [output.splitlines()[-1] for output in outputs]
    assert last == ["[0.0, 1.0] unchanged"] * 2


def run_rank(model: str, port: str, rank: str) -> None:
    set_rank(int(rank), 2, int(port))
    worker = make_worker(model, rows=1)
    good = update(worker, 1.0, rows=1)["skipped_updates"]
    before = parameters(worker)
    broken = update(worker, float("nan") if rank == "1" else 1.0, rows=1)["skipped_updates"]
    moved = "unchanged" if torch.equal(parameters(worker), before) else "moved"
    print(good + broken, moved)  # noqa: T201


if __name__ == "__main__":
    run_rank(*sys.argv[1:])
