"""verl's own tool loop with a scripted model: turns, masks, seeds, and tools that raise, hang or answer with a megabyte."""

import asyncio
import json
import logging
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap
from verl.experimental.agent_loop.tool_parser import HermesToolParser
from verl.tools.base_tool import BaseTool
from verl.tools.function_tool import FunctionTool, load_function_tools_from_path
from verl.tools.schemas import ToolResponse
from verl.utils.dataset.rl_dataset import RLHFDataset

from data import make_tool_task
from data.tool_task import replies, solve_in_turns, tool_questions
from data.toy_task import Noise, render_question
from recipe.exgrpo.presets.compose import ROOT, compose
from verl_ext import tool_loop
from verl_ext.tool_loop import BoundedToolAgentLoop, spans_of

pytestmark = pytest.mark.verl
TOKENIZER = make_tool_task.make_tokenizer()
CONFIG = compose(
    [
        "hardware=cpu",
        "data.max_prompt_length=48",
        "data.max_response_length=200",
        "actor_rollout_ref.rollout.multi_turn.enable=true",
        "exgrpo.runtime.tool_timeout_s=0.2",
    ]
)
QUESTION = tool_questions(1, np.random.default_rng(0))[0]
CALCULATOR = load_function_tools_from_path(str(ROOT / "data/toy_tool.py"))[0]
SECRET = "\x1b[31mred"


class Server:
    """Answers with the turns of a script, and remembers how it was asked."""

    def __init__(self, turns: list[list[int]]) -> None:
        self.turns, self.prompts, self.seeds = turns, [], []

    async def generate(self, prompt_ids, sampling_params, **kwargs):
        ids = self.turns[len(self.prompts)]
        self.prompts.append(list(prompt_ids))
        self.seeds.append(sampling_params.get("seed"))
        fields = {"min_global_steps": 1, "max_global_steps": 1}
        return SimpleNamespace(
            token_ids=ids, log_probs=[-0.5] * len(ids), num_preempted=0, extra_fields=fields, routed_experts=None
        )


def run(turns: list[list[int]], tool=CALCULATOR, **kwargs):
    """(output, server) of one trajectory."""

    async def one():
        server = Server(turns)
        loop = BoundedToolAgentLoop(
            trainer_config=DictConfigWrap(CONFIG),
            server_manager=server,
            tokenizer=TOKENIZER,
            processor=None,
            dataset_cls=RLHFDataset,
            data_config=DictConfigWrap(CONFIG.data),
            hf_model_type="qwen2",
            tools=ToolListWrap([tool]),
            timeout_key="exgrpo.runtime.tool_timeout_s",
            **kwargs,
        )
        prompt = [{"role": "user", "content": render_question(QUESTION)}]
        fields = {"global_steps": 3, "session_id": 1, "extra_info": {"question_id": "q"}, "index": 0}
        return await loop.run({"temperature": 1.0}, raw_prompt=prompt, **fields), server

    return asyncio.run(one())


def script(noise=None, seed=0):
    """(turns, their token ids) of a demonstration."""
    turns = solve_in_turns(QUESTION, noise or Noise(), np.random.default_rng(seed))
    return turns, [make_tool_task.encode_turn(TOKENIZER, turn) for turn in turns]


def with_tool(function) -> FunctionTool:
    return FunctionTool("calculate", function, CALCULATOR.tool_schema)


@pytest.mark.parametrize("noise", [Noise(), Noise(easy=0.5, hard=0.5)])
def test_a_demonstration_is_token_for_token_what_the_loop_makes_of_its_turns(noise):
    """The base model is trained on what it will see, with the loop's mask."""
    turns, ids = script(noise, seed=1)
    output, _ = run(ids)
    learnt = make_tool_task.demonstration(TOKENIZER, QUESTION, turns)
    assert [*output.prompt_ids, *output.response_ids] == learnt.ids
    assert [*[0] * len(output.prompt_ids), *output.response_mask] == list(map(int, learnt.learnt))
    assert output.num_turns == 2 * len(turns)
    assert output.extra_fields["tool_failures"] == 0


def test_spans_are_the_tokens_that_are_not_the_models():
    assert spans_of([1, 1, 0, 0, 1, 0]) == [[2, 4], [5, 6]]
    assert spans_of([1, 1]) == spans_of([]) == []
    turns, ids = script()
    output, _ = run(ids)
    given = [output.response_ids[start:stop] for start, stop in output.extra_fields["tool_spans"]]
    assert given == [make_tool_task.encode_reply(TOKENIZER, reply) for reply in replies(turns) if reply is not None]


def raises(expression):
    raise RuntimeError(SECRET * 100_000)


def hangs(expression):
    time.sleep(1)


async def hangs_politely(expression):
    await asyncio.sleep(60)


def babbles(expression):
    return "9=" * 500_000


def exits(expression):
    raise SystemExit(SECRET)


BAD = {"raises": raises, "hangs": hangs, "hangs_politely": hangs_politely, "exits": exits}


@pytest.mark.parametrize("name", BAD)
def test_a_call_that_fails_is_counted_and_the_model_goes_on(name, caplog):
    tool = with_tool(BAD[name])
    tool.is_async = asyncio.iscoroutinefunction(tool.fn)
    turns, ids = script()
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING):
        output, server = run(ids, tool)
    assert time.monotonic() - begun < 10
    assert output.extra_fields["tool_failures"] == len(turns) - 1 == len(output.extra_fields["tool_spans"])
    assert len(server.prompts) == len(turns)
    text = TOKENIZER.decode(output.response_ids)
    assert "error: " in text
    if name.startswith("hangs"):
        assert "within 0.2 s" in text  # the limit of the call, not the wider one around it
    assert SECRET not in text + caplog.text
    assert len(caplog.text) < 5000


def test_a_megabyte_is_cut_and_ends_its_own_sample_only():
    _, ids = script()
    output, server = run(ids, with_tool(babbles))
    assert len(server.prompts) == 1
    assert output.response_ids == ids[0]  # what would not fit is left out, and the response ends there
    assert output.response_mask == [1] * len(ids[0])


def test_arguments_that_the_tool_does_not_have_are_its_callers_failure():
    text = '<tool_call>{"name": "calculate", "arguments": {"wrong": 1}}</tool_call>'
    output, _ = run([[*TOKENIZER(text).input_ids, TOKENIZER.eos_token_id], script()[1][-1]])
    assert output.extra_fields["tool_failures"] == 1
    assert "error: TypeError" in TOKENIZER.decode(output.response_ids)


def test_calls_that_never_came_back_are_bounded(monkeypatch):
    monkeypatch.setattr(tool_loop, "MAX_HANGING", 2)
    stop = threading.Event()

    def waits(expression):
        stop.wait(20)

    _, ids = script()
    call, last = ids[0], ids[-1]
    try:
        output, _ = run([call, call, call, last], with_tool(waits))
        assert sum(thread.name == tool_loop.THREAD for thread in threading.enumerate()) == 2
        assert output.extra_fields["tool_failures"] == 3
        assert "error: RuntimeError" in TOKENIZER.decode(output.response_ids)
    finally:
        stop.set()


def test_every_turn_of_a_seeded_run_has_a_seed_of_its_own():
    _, ids = script()
    seeds = [run(ids, seed_keys=["exgrpo.seed"])[1].seeds for _ in range(2)]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == len(ids) > 1
    assert run(ids)[1].seeds == [None] * len(ids)


# ---- tools that are classes, and answers that fit into no response


class Stateful(BaseTool):
    """verl's other kind of tool; `execute` does what it is told."""

    def __init__(self, execute):
        super().__init__({"type": "native"}, CALCULATOR.tool_schema)
        self._execute, self.released = execute, 0

    async def execute(self, instance_id, parameters, **kwargs):
        return await self._execute(parameters)

    async def release(self, instance_id, **kwargs):
        self.released += 1


async def raised(parameters):
    raise RuntimeError(SECRET * 100_000)


async def never(parameters):
    await asyncio.sleep(60)


async def fine(parameters):
    return ToolResponse(text="123"), 0.5, {}


@pytest.mark.parametrize(("execute", "failures"), [(raised, True), (never, True), (fine, False)])
def test_tools_that_are_classes_are_bounded_as_well(execute, failures, caplog):
    turns, ids = script()
    tool = Stateful(execute)
    with caplog.at_level(logging.WARNING):
        output, server = run(ids, tool)
    calls = len(turns) - 1
    assert output.extra_fields["tool_failures"] == (calls if failures else 0)
    assert (len(server.prompts), tool.released) == (len(turns), calls)
    text = TOKENIZER.decode(output.response_ids)
    assert ("error: " in text, "123" in text) == (failures, not failures)
    assert SECRET not in text + caplog.text
    assert len(caplog.text) < 5000


def test_an_image_ends_its_own_sample_before_it():
    _, ids = script()
    output, server = run(ids, with_tool(lambda expression: ToolResponse(text="1", image=[object()])))
    assert len(server.prompts) == 1
    assert (output.response_ids, output.response_mask) == (ids[0], [1] * len(ids[0]))
    assert output.extra_fields["tool_failures"] == 1


def test_half_a_surrogate_is_no_end_of_the_group():
    turns, ids = script()
    output, server = run(ids, with_tool(lambda expression: "\ud800 1"))
    assert len(server.prompts) == len(turns)
    assert output.extra_fields["tool_failures"] == 0


def test_a_parser_that_raises_ends_its_own_sample(monkeypatch, caplog):
    async def extract(self, ids, tools=None):
        raise ValueError(SECRET)

    monkeypatch.setattr(HermesToolParser, "extract_tool_calls", extract)
    _, ids = script()
    with caplog.at_level(logging.WARNING):
        output, server = run(ids)
    assert len(server.prompts) == 1
    assert output.response_ids == ids[0]
    assert SECRET not in caplog.text


def test_what_verl_logs_of_a_models_words_is_spelled_out(caplog):
    name = SECRET + "x" * 20
    text = "<tool_call>" + json.dumps({"name": name, "arguments": {}}) + "</tool_call>"
    with caplog.at_level(logging.WARNING):
        run([[*TOKENIZER(text).input_ids, TOKENIZER.eos_token_id], script()[1][-1]])
    assert "Unknown function" in caplog.text
    assert SECRET not in caplog.text
