"""Validation through verl's own method, dataset and TransferQueue: samples per question, pass rates per data source."""

import asyncio
from collections import Counter
from types import SimpleNamespace

import pandas as pd
import pytest

from data.validation import SAMPLES_COLUMN
from recipe.exgrpo.trainer.trainer import ExGRPOTrainer

pytestmark = pytest.mark.verl

TOY = "data/toy/model"


# ---- the figures


def updated(samples: list[tuple], lost: dict[tuple[str, str], int] | None = None) -> dict[str, float]:
    """verl's metrics of (data source, uid, acc, reward) and ours; `lost` samples were asked for as well."""
    sources, uids, acc, reward = (list(column) for column in zip(*samples, strict=True))
    infos = {"reward": reward} | ({} if set(acc) == {None} else {"acc": acc})
    asked = Counter(zip(sources, uids, strict=True)) + Counter(lost or {})
    trainer = object.__new__(ExGRPOTrainer)  # its constructor starts the whole stack
    return trainer._val_metrics_update(sources, uids, infos, [2] * len(samples), expected_acc_counts=dict(asked))


def test_the_mean_is_over_sources_not_over_rows():
    samples = [("aime24", f"a{i}", float(i == 0), float(i == 0)) for i in range(2)]
    samples += [("math500", f"m{i}", float(i < 9), float(i < 9)) for i in range(10)]
    metrics = updated(samples)
    assert metrics["val/aime24/pass_rate"] == 0.5
    assert metrics["val/math500/pass_rate"] == 0.9
    assert metrics["val/pass_rate"] == pytest.approx(0.7)  # over rows it would be 10/12
    assert metrics["val-core/math500/acc/mean@1"] == 0.9  # verl's own are there, too


def test_repeated_samples_count_by_question_and_lost_ones_as_wrong():
    """Two questions of four samples, one sample lost; a question that was lost whole is no better."""
    samples = [("amc23", "a", 1.0, 1.0)] * 3 + [("amc23", "b", value, value) for value in (0.0, 1.0, 0.0, 0.0)]
    metrics = updated(samples, lost={("amc23", "a"): 1, ("amc23", "c"): 4})
    assert metrics["val/amc23/pass_rate"] == pytest.approx(4 / 12)
    assert metrics["val/pass_rate"] == pytest.approx(4 / 12)
    assert updated(samples, lost={("amc23", "a"): 1})["val-core/amc23/acc/mean@4"] == pytest.approx(4 / 8)


def test_a_source_without_acc_counts_by_its_reward():
    """Continuous rewards: beside a source with `acc`, and alone."""
    judged = [("chat", f"c{i}", None, reward) for i, reward in enumerate((2.5, -0.5))]
    metrics = updated([*judged, ("math500", "m", 0.0, 1.0)])
    assert (metrics["val/chat/pass_rate"], metrics["val/math500/pass_rate"]) == (1.0, 0.0)
    assert metrics["val/pass_rate"] == 0.5
    assert updated(judged, lost={("chat", "c0"): 1})["val/pass_rate"] == 1.0


# ---- the samples


@pytest.fixture
def trainer(tmp_path, compose, transfer_queue, agent_loop_worker, monkeypatch):
    """A trainer with its validation data and without workers: a question about n is answered right by its first n samples."""
    rows = [row("aime24", 1, 8), row("aime24", 3, 8), row("amc23", 2, 4), row("math500", 0, 1), row("math500", 1, 1)]
    path = tmp_path / "validation.parquet"
    pd.DataFrame(rows).to_parquet(path)
    train = tmp_path / "train.parquet"
    pd.DataFrame(rows).drop(columns=SAMPLES_COLUMN).to_parquet(train)
    found = ExGRPOTrainer(
        compose(
            f"data.train_files={train}",
            f"data.val_files={path}",
            "data.train_batch_size=1",
            f"actor_rollout_ref.model.path={TOY}",
            f"trainer.default_local_dir={tmp_path}/run",
        )
    )
    found._init_tokenizer()
    found._init_dataloader()
    found.global_steps = 3
    found.replay_buffer = found._build_replay_buffer()
    found.agent_loop_manager = Rollout(agent_loop_worker)
    lent = {"config": found.config, "background_tasks": set(), "_run_agent_loop": found.agent_loop_manager.answer}
    for name, value in lent.items():
        monkeypatch.setattr(agent_loop_worker, name, value, raising=False)
    found.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[object()])  # graded during the rollout
    return found


def row(source: str, right: int, samples: int) -> dict:
    info = {"split": "test", "index": right, "question_id": f"{source}{right}", "n_samples": samples}
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": str(right)}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(right)},
        "extra_info": info,
        SAMPLES_COLUMN: samples,
    }


class Rollout:
    """verl's agent loop of one worker, in this process and without an engine."""

    def __init__(self, worker):
        self.worker, self.asked = worker, Counter()

    def generate_sequences(self, batch):
        async def run():
            await self.worker.generate_sequences(batch)
            await asyncio.gather(*self.worker.background_tasks)

        asyncio.run(run())

    async def answer(self, sampling_params, *, trajectory, trace, session_id, **columns):
        from verl.experimental.agent_loop import AgentLoopOutput

        self.asked[columns["data_source"], columns["reward_model"]["ground_truth"]] += 1
        assert (sampling_params["temperature"], sampling_params["top_p"]) == (0.6, 1.0)
        reward = float(session_id < int(columns["reward_model"]["ground_truth"]))
        output = AgentLoopOutput(
            prompt_ids=[1, 2],
            response_ids=[3, 4],
            response_mask=[1, 1],
            response_logprobs=[-0.1, -0.1],
            reward_score=reward,
            num_turns=2,
            metrics={"generate_sequences": 0.5},
            extra_fields={"reward_extra_info": {"acc": reward}, "turn_scores": [], "tool_rewards": []},
        )
        await self.worker._agent_loop_postprocess(output, trajectory["validate"], session_id=session_id, **columns)


def test_every_question_is_sampled_as_often_as_its_row_says(trainer):
    metrics = trainer._validate()
    asked = {("aime24", "1"): 8, ("aime24", "3"): 8, ("amc23", "2"): 4, ("math500", "0"): 1, ("math500", "1"): 1}
    assert trainer.agent_loop_manager.asked == asked
    rates = {"aime24": (1 + 3) / 16, "amc23": 2 / 4, "math500": 1 / 2}
    for source, rate in rates.items():
        assert metrics[f"val/{source}/pass_rate"] == pytest.approx(rate)
    assert metrics["val/pass_rate"] == pytest.approx(sum(rates.values()) / 3)
    assert metrics["val-core/aime24/acc/mean@8"] == pytest.approx(rates["aime24"])
