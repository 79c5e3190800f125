"""The reward function as verl's reward loop loads and calls it: config, manager, thread pool, metrics of validation."""

import asyncio

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

pytestmark = pytest.mark.verl

LIMIT = 40  # tokens a response may have; one token is one character
END = 1  # the end-of-sequence token
RESPONSES = [
    (r"\boxed{84/2}", 0.0),  # no </think>
    (r"</think>\boxed{42}", 1.0),
    (r"</think>\boxed{41}", 0.0),
    (r"</think>\boxed{" + "9" * 500 + "}", 0.0),
    ("", 0.0),
    ("</think>The answer is 42", 1.0),
    ("</think>It is 42".ljust(LIMIT), 0.0),  # cut off at the limit, no box
    ("</think>It is 42".ljust(LIMIT - 1) + chr(END), 1.0),  # as long, but ended
    (r"</think>\boxed{42}".ljust(LIMIT), 1.0),
]


class CharacterTokenizer:
    """Token ids are code points; 0 is padding, END the end of a sequence."""

    all_special_ids = (0, END)

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(chr(i) for i in ids.tolist() if i not in self.all_special_ids)


def sample(response: str, extra_info: dict | None = None):
    """One response as AgentLoopWorker._compute_score sends it: prompt in front, no padding but what the batch needs."""
    from verl import DataProto

    prompt = torch.tensor([[ord("?")] * 3])
    ids = torch.tensor([[ord(c) for c in response] + [0] * 5])
    columns = {
        "data_source": "math500",
        "reward_model": {"style": "rule", "ground_truth": "42"},
        "extra_info": extra_info or {"split": "test", "index": 0, "question_id": "ab"},
        "__num_turns__": 2,
    }
    return DataProto.from_dict(
        tensors={"prompts": prompt, "responses": ids, "attention_mask": (torch.cat([prompt, ids], dim=1) > 0).long()},
        non_tensors={key: np.array([value], dtype=object) for key, value in columns.items()},
    )


def configuration(**manager):
    function = {
        "path": "pkg://verl_ext.rewards",
        "name": "compute_score",
        "reward_kwargs": {"think_format": True, "deadline_s": 5.0},
    }
    reward = {"custom_reward_function": function, "reward_manager": manager, "sandbox_fusion": None}
    return OmegaConf.create({"reward": reward, "actor_rollout_ref": {"rollout": {"response_length": LIMIT}}})


@pytest.fixture(scope="module")
def results():
    from verl.trainer.ppo.reward import load_reward_manager

    module = {"path": "pkg://verl_ext.rewards.manager"}
    config = configuration(source="importlib", name="RewardManager", module=module)

    async def run():
        manager = load_reward_manager(config, CharacterTokenizer())
        manager.loop = asyncio.get_running_loop()
        return await asyncio.gather(*(manager.run_single(sample(response)) for response, _ in RESPONSES))

    return asyncio.run(run())


def test_scores(results):
    assert [result["reward_score"] for result in results] == [score for _, score in RESPONSES]
    assert [result["reward_extra_info"]["format_ok"] for result in results] == [0.0, 1, 1, 1, 0.0, 1, 1, 1, 1]


def test_counters_reach_the_validation_metrics_and_strings_do_not_break_them(results):
    from verl.trainer.ppo.metric_utils import process_validation_metrics

    infos = {key: [result["reward_extra_info"][key] for result in results] for key in results[0]["reward_extra_info"]}
    count = len(RESPONSES)
    metrics = process_validation_metrics(["math500"] * count, ["q"] * count, infos)["math500"]
    assert metrics["acc"][f"mean@{count}"] == pytest.approx(4 / count)
    assert metrics["precheck"][f"mean@{count}"] == pytest.approx(1 / count)
    assert {"timeout", "error", "format_ok"} <= set(metrics)
    assert "extracted" not in metrics


def test_without_our_manager_the_function_still_works():
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.trainer.ppo.reward import get_custom_reward_fn

    async def run():
        manager = NaiveRewardManager(configuration(), CharacterTokenizer(), get_custom_reward_fn(configuration()))
        manager.loop = asyncio.get_running_loop()
        return await manager.run_single(sample(RESPONSES[6][0]))

    assert asyncio.run(run())["reward_score"] == 1.0  # it cannot know that the response was cut off


@pytest.mark.parametrize(
    ("length", "last", "truncated"),
    [(LIMIT, 50, True), (LIMIT + 1, 50, True), (LIMIT, END, False), (LIMIT - 1, 50, False), (0, None, False)],
)
def test_truncation_is_a_full_response_without_an_end(length, last, truncated):
    from verl_ext.rewards.manager import is_truncated

    ids = torch.tensor([50] * max(0, length - 1) + ([last] if length else []), dtype=torch.long)
    assert is_truncated(ids, LIMIT, frozenset((0, END))) is truncated


def test_the_manager_keeps_the_sample_s_own_extra_info():
    from verl_ext.rewards.manager import RewardManager

    seen = {}

    def score(extra_info, **kwargs):
        seen.update(extra_info)
        return 1.0

    async def run():
        manager = RewardManager(configuration(), CharacterTokenizer(), score)
        manager.loop = asyncio.get_running_loop()
        return await manager.run_single(sample("x" * LIMIT, {"question_id": "ab", "think_format": True}))

    assert asyncio.run(run())["reward_score"] == 1.0
    assert (seen["question_id"], seen["think_format"], seen["truncated"]) == ("ab", True, True)
