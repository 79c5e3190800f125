"""The reward function as verl's reward loop loads and calls it: config, thread pool, metrics of validation."""

import asyncio

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

RESPONSES = [r"\boxed{84/2}", r"</think>\boxed{42}", r"</think>\boxed{41}", r"</think>\boxed{" + "9" * 500 + "}", ""]


class CharacterTokenizer:
    """Token ids are code points; 0 is padding."""

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(map(chr, ids.tolist()))


def sample(response: str):
    from verl import DataProto

    ids = torch.tensor([[ord(c) for c in response] + [0] * (600 - len(response))])
    columns = {
        "data_source": "math500",
        "reward_model": {"style": "rule", "ground_truth": "42"},
        "extra_info": {"split": "test", "index": 0, "question_id": "ab"},
        "__num_turns__": 2,
    }
    return DataProto.from_dict(
        tensors={"responses": ids, "attention_mask": (ids > 0).long()},
        non_tensors={key: np.array([value], dtype=object) for key, value in columns.items()},
    )


@pytest.fixture(scope="module")
def results():
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.trainer.ppo.reward import get_custom_reward_fn

    function = {
        "path": "pkg://verl_ext.rewards",
        "name": "compute_score",
        "reward_kwargs": {"think_format": True, "deadline_s": 5.0},
    }
    config = OmegaConf.create({"reward": {"custom_reward_function": function}})

    async def run():
        manager = NaiveRewardManager(config, CharacterTokenizer(), get_custom_reward_fn(config))
        manager.loop = asyncio.get_running_loop()
        return await asyncio.gather(*(manager.run_single(sample(response)) for response in RESPONSES))

    return asyncio.run(run())


def test_scores(results):
    assert [result["reward_score"] for result in results] == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert [result["reward_extra_info"]["format_ok"] for result in results] == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_counters_reach_the_validation_metrics_and_strings_do_not_break_them(results):
    from verl.trainer.ppo.metric_utils import process_validation_metrics

    infos = {key: [result["reward_extra_info"][key] for result in results] for key in results[0]["reward_extra_info"]}
    metrics = process_validation_metrics(["math500"] * 5, ["q"] * 5, infos)["math500"]
    assert metrics["acc"]["mean@5"] == pytest.approx(0.2)
    assert metrics["precheck"]["mean@5"] == pytest.approx(0.2)
    assert {"timeout", "error", "format_ok"} <= set(metrics)
    assert "extracted" not in metrics
