"""The reward function as verl's reward loop loads and calls it: config, manager, thread pool, metrics of validation."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

pytestmark = pytest.mark.verl

TOY = "data/toy/model"

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

    all_special_ids = (0,)
    eos_token_id = END
    added_tokens_decoder = {END: SimpleNamespace(special=True), ord("2"): SimpleNamespace(special=False)}

    def encode(self, text, add_special_tokens):
        return [ord(character) for character in text]

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(chr(i) for i in ids.tolist() if i not in (0, END))


def sample(response: str, extra_info: dict | None = None):
    """One response of the character tokenizer, with the padding of a longer one beside it."""
    return row([ord("?")] * 3, [ord(c) for c in response], extra_info, padding=5)


def row(prompt: list[int], response: list[int], extra_info: dict | None = None, padding: int = 0):
    """One response as AgentLoopWorker._compute_score sends it: prompt in front, no padding but what the batch needs."""
    from verl import DataProto

    prompts, responses = torch.tensor([prompt]), torch.tensor([response + [0] * padding])
    mask = torch.tensor([[1] * (len(prompt) + len(response)) + [0] * padding])
    columns = {
        "raw_prompt": [{"role": "user", "content": "6 * 7?"}],
        "data_source": "math500",
        "reward_model": {"style": "rule", "ground_truth": "42"},
        "extra_info": extra_info or {"split": "test", "index": 0, "question_id": "ab"},
        "__num_turns__": 2,
    }
    return DataProto.from_dict(
        tensors={"prompts": prompts, "responses": responses, "attention_mask": mask},
        non_tensors={key: column(value) for key, value in columns.items()},
    )


def column(value) -> np.ndarray:
    """One row of objects; a list stays a list."""
    found = np.empty(1, dtype=object)
    found[0] = value
    return found


def configuration(**manager):
    function = {
        "path": "pkg://verl_ext.rewards",
        "name": "compute_score",
        "reward_kwargs": {"think_format": True, "deadline_s": 5.0},
    }
    reward = {"custom_reward_function": function, "reward_manager": manager, "sandbox_fusion": None}
    rollout = {"response_length": LIMIT, "prompt_length": 3, "max_model_len": None}
    return OmegaConf.create({"reward": reward, "actor_rollout_ref": {"rollout": rollout}})


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


@pytest.mark.parametrize(
    ("prompt", "max_model_len", "limit"), [(3, None, 40), (10, None, 33), (3, 100, 40), (3, 30, 27), (10, 42, 32)]
)
def test_the_limit_is_what_is_left_of_the_context(prompt, max_model_len, limit):
    from verl_ext.rewards.manager import response_limit

    rollout = SimpleNamespace(response_length=40, prompt_length=3, max_model_len=max_model_len)
    assert response_limit(rollout, prompt) == limit


# --- verl's reward loop with the configuration that is shipped ---


@pytest.fixture
def graded(compose):
    """graded(rows, *overrides) -> what verl's RewardLoopWorker answers, on the toy model's tokenizer.

    A row is (response, its tokens with blanks added, 0 for none, whether the model ended it), and perhaps its prompt's tokens.
    """
    from transformers import AutoTokenizer
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    tokenizer = AutoTokenizer.from_pretrained(TOY)

    def sampled(text: str, length: int, ended: bool, prompt: int = 8):
        ids, [blank] = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, "\n"))
        return row([1] * prompt, ids + [blank] * (length - len(ids) - ended) + [tokenizer.eos_token_id] * ended)

    async def answers(config, rows):
        worker = RewardLoopWorker(config, reward_router_address=None)
        return await asyncio.gather(*(worker.compute_score(sampled(*fields)) for fields in rows))

    def grade(rows: list[tuple], *overrides: str) -> list[dict]:
        return asyncio.run(answers(compose(f"actor_rollout_ref.model.path={TOY}", "hardware=tiny", *overrides), rows))

    return grade


def scores(results: list[dict]) -> list[float]:
    return [result["reward_score"] for result in results]


CUT = [
    ("It is 42", 64, False, 0.0),
    ("It is 42", 64, True, 1.0),
    ("It is 42", 63, False, 1.0),  # a stop that leaves no token
    ("It is 42", 0, True, 1.0),
    (r"\boxed{42}", 64, False, 1.0),
    ("the answer is 42", 64, False, 0.0),
    ("$42$", 64, False, 0.0),
]


def test_a_cut_response_without_a_box_is_not_graded_by_its_last_number(graded):
    found = graded([case[:3] for case in CUT])
    assert scores(found) == [score for *_, score in CUT]
    assert [info["reward_extra_info"]["truncated"] for info in found] == [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]


def test_a_response_that_ends_with_the_context_is_cut_as_well(graded):
    rows = [("It is 42", 52, False, 60), ("It is 42", 51, False, 60)]
    assert scores(graded(rows)) == [0.0, 1.0]  # 48 + 64 positions for prompt and response
    rows = [("It is 42", 40, False, 20), ("It is 42", 39, False, 20)]
    assert scores(graded(rows, "actor_rollout_ref.rollout.max_model_len=60")) == [0.0, 1.0]


def test_without_the_manager_a_cut_response_would_be_graded(graded):
    verls = ("reward.reward_manager.source=register", "reward.reward_manager.name=naive")
    assert scores(graded([CUT[0][:3]], *verls)) == [1.0]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_function_of_one_s_own_is_told_too(graded, tmp_path, kind):
    file = tmp_path / "mine.py"
    file.write_text(f"{kind} compute_score(extra_info, **_):\n    return float(extra_info['truncated'])\n")
    rows = [case[:3] for case in CUT[:2]]
    assert scores(graded(rows, f"reward.custom_reward_function.path={file}")) == [1.0, 0.0]


def test_the_script_s_function_for_continuous_rewards_still_works(graded):
    rows = [("42", 0, True), ("It is 42", 64, False)]
    assert scores(graded(rows, "reward.custom_reward_function.path=scripts/tiny_reward.py"))[0] > 0


def test_a_reward_model_is_asked_as_before(graded, monkeypatch):
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    asked = []

    async def post(self, payload, endpoint, **_):
        asked.append((endpoint, payload["input"]))
        return {"data": [{"probs": [0.25]}]}

    monkeypatch.setattr(RewardLoopWorker, "_post_request", post)
    model = (f"reward.reward_model.model_path={TOY}", "reward.reward_model.enable=true")
    assert scores(graded([("It is 42", 0, True)], "method=continuous", *model)) == [0.25]
    assert [endpoint for endpoint, _ in asked] == ["classify"]
    assert "It is 42" in asked[0][1]


def test_verls_driver_finds_the_manager_s_class(compose):
    from verl.trainer.ppo.reward import resolve_reward_manager_cls

    from verl_ext.rewards.manager import RewardManager

    for overrides in ((), ("method=continuous",), ("method=on_policy",), ("profile=released",)):
        assert resolve_reward_manager_cls(compose(*overrides)) is RewardManager


THOUGHTS = [
    (r"a</think>\boxed{42}", 1.0, 1.0),
    (r"a</think>\boxed{42}</think>\boxed{41}", 0.0, 1.0),
    (r"a</think>\boxed{41}</think>\boxed{42}", 1.0, 0.0),
    (r"\boxed{42}</think>", 0.0, 0.0),
    (r"\boxed{42}</think></think>\boxed{42}", 1.0, 0.0),
    (r"a</think>\boxed{42}</think>b</think>", 0.0, 1.0),
    (r"\boxed{42}", 0.0, 0.0),
    ("a</think>It is 42</think>", 0.0, 1.0),
]


def test_the_released_profile_grades_between_the_first_and_the_second_end_of_thought(graded):
    rows = [(text, 0, True) for text, *_ in THOUGHTS]
    think = "+reward.custom_reward_function.reward_kwargs.think_format=true"
    assert scores(graded(rows, think)) == [ours for _, ours, _ in THOUGHTS]
    assert scores(graded(rows, think, "profile=released")) == [theirs for *_, theirs in THOUGHTS]


def test_what_a_tool_wrote_is_not_graded():
    """A box in a tool's answer is none of the model's; its own text stays as it is, with a line break between its turns."""
    from verl_ext.rewards.manager import RewardManager

    seen = []

    def score(solution_str, **kwargs):
        seen.append(solution_str)
        return 1.0

    def shown(text: str, spans: list[list[int]]) -> str:
        data = sample(text)
        data.non_tensor_batch["tool_extra_fields"] = column({"tool_spans": spans})

        async def run():
            manager = RewardManager(configuration(), CharacterTokenizer(), score)
            manager.loop = asyncio.get_running_loop()
            await manager.run_single(data)

        asyncio.run(run())
        return seen.pop()

    text = "call[\\boxed{4}]so 5"
    start = text.index("["), text.index("]") + 1
    assert shown(text, [list(start)]) == "call\nso 5"
    assert shown(text, []) == text
    assert shown("12", [[1, 2]]) == "1\n"
