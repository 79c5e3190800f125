"""verl's tool loop for tools that may raise, hang or answer with anything: a bad call costs its sample, never the run.

Selected by `actor_rollout_ref.rollout.agent.default_agent_loop` (`bounded_tool`, or `seeded_tool` with sampling seeds as in
`agent_loop.py`) with `agent_loop_config_path` naming `agent_loops.yaml`. verl 0.9.1 waits for a call for ever, in the thread
pool that also tokenizes, and puts the message of an exception into prompt and log whatever its length.
"""

import asyncio
import contextlib
import inspect
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

from omegaconf import OmegaConf
from verl.experimental.agent_loop import tool_agent_loop, tool_parser
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.tool_agent_loop import AgentState, ToolAgentLoop
from verl.tools.function_tool import FunctionTool
from verl.tools.schemas import ToolResponse

from verl_ext.agent_loop import question_key, request_seed, run_seed_of
from verl_ext.text import one_line
from verl_ext.tools import FAILURES, SPANS

logger = logging.getLogger(__name__)

FAILED = "failed"  # key of a call's metrics
THREAD = "tool-call"
MAX_HANGING = 64  # calls that never came back, in one process, after which none is made
SHOWN = 120  # characters of an error


def spans_of(mask: Sequence[int]) -> list[list[int]]:
    """[start, stop) of each run of zeros in a response mask: what the tools and the chat template wrote."""
    spans, place = [], 0
    for own, run in groupby(mask):
        length = len(list(run))
        if not own:
            spans.append([place, place + length])
        place += length
    return spans


async def in_own_thread(function: Callable, /, **arguments: Any) -> Any:
    """`function(**arguments)` in a thread that nobody waits for: one that hangs takes no place of the loop's pool.

    Raises what the function raises, and RuntimeError while `MAX_HANGING` earlier calls have not come back.
    """
    if sum(thread.name == THREAD for thread in threading.enumerate()) >= MAX_HANGING:
        raise RuntimeError(f"{MAX_HANGING} calls hang")
    future: Future = Future()
    future.set_running_or_notify_cancel()  # from here a cancelled wait leaves it alone

    def call() -> None:
        try:
            future.set_result(function(**arguments))
        except Exception as problem:  # noqa: BLE001 - a tool may raise anything; it is raised where the call is waited for
            future.set_exception(problem)
        except BaseException as problem:  # noqa: BLE001 - SystemExit would end the loop that waits, and all rollouts with it
            future.set_exception(RuntimeError(type(problem).__name__))

    threading.Thread(target=call, name=THREAD, daemon=True).start()
    return await asyncio.wrap_future(future)


def failure(why: str) -> tuple[str, float, dict]:
    """What the model reads in place of an answer, no reward, and the mark of a failed call."""
    return f"error: {why}", 0.0, {FAILED: True}


def described(problem: Exception) -> str:
    """Kind and beginning of an exception's message, as a log may show it."""
    return f"{type(problem).__name__}: {one_line(str(problem)[:SHOWN])}"


async def answer(name: str, call: Callable[[], Awaitable[Any]], timeout_s: float) -> Any:
    """What `call` returns within `timeout_s` seconds, or `failure`."""
    try:
        return await asyncio.wait_for(call(), timeout_s)
    except TimeoutError:
        return failure(f"no answer within {timeout_s:g} s")
    except Exception as problem:  # noqa: BLE001 - one sample's bad luck
        logger.warning("tool %s: %s", name, described(problem))
        return failure(type(problem).__name__)


class BoundedTool:
    """A tool that is a class, whose `execute` ends with an answer or with `failure`; everything else is its own."""

    def __init__(self, tool: Any, timeout_s: float) -> None:
        self._tool, self._timeout_s = tool, timeout_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tool, name)

    async def execute(self, *args: Any, **kwargs: Any) -> tuple[ToolResponse, float, dict]:
        found = await answer(self._tool.name, lambda: self._tool.execute(*args, **kwargs), self._timeout_s)
        text, *rest = found
        return ToolResponse(text=text) if isinstance(text, str) else text, *rest


def bounded(tool: Any, timeout_s: float) -> Any:
    """A tool whose calls end within `timeout_s` seconds, with an answer or with `failure`."""
    if not isinstance(tool, FunctionTool):
        return BoundedTool(tool, timeout_s)
    function = tool.fn if tool.is_async else partial(in_own_thread, tool.fn)

    async def checked(**arguments: Any) -> Any:
        inspect.signature(tool.fn).bind(**arguments)
        return await function(**arguments)

    async def call(**arguments: Any) -> Any:
        return await answer(tool.name, lambda: checked(**arguments), timeout_s)

    return replace(tool, fn=call, is_async=True)


def careful(extract: Callable) -> Callable:
    """A parser's `extract_tool_calls` that takes text which it cannot parse for text without calls: that ends the rollout."""

    async def extracted(*args: Any, **kwargs: Any) -> tuple[str, list]:
        try:
            content, calls = await extract(*args, **kwargs)
            for call in calls:
                _parse(call.arguments)
            return content, calls
        except Exception as problem:  # noqa: BLE001 - the model may have written anything
            logger.warning("a tool call cannot be parsed: %s", described(problem))
            return "", []

    return extracted


def _parse(arguments: str) -> None:
    """Raise what verl does not expect of arguments: numbers of thousands of digits, brackets without end."""
    with contextlib.suppress(json.JSONDecodeError):
        json.loads(arguments)


def printable_answer(text: str | None, limit: int) -> str | None:
    """The first `limit` characters of what a tool said, as UTF-8 can hold them: half a surrogate ends the tokenizer."""
    return text and text[:limit].encode("utf-8", "replace").decode()


class Escaped(logging.Filter):
    """verl's warnings quote models and tools: the first characters as one line, control characters spelled out."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = one_line(record.getMessage()[: 4 * SHOWN]), None
        return True


ESCAPED = Escaped()


def count_failure(agent_data: Any) -> None:
    agent_data.extra_fields[FAILURES] = agent_data.extra_fields.get(FAILURES, 0) + 1


class BoundedToolAgentLoop(ToolAgentLoop):
    """verl's tool loop with bounded calls; `extra_fields` say how many failed and which tokens are not the model's.

    Args:
        timeout_key: where the seconds that a call may take are in the run's configuration.
        seed_keys: where the run's seed may be; none: verl's own sampling.
        args, kwargs: verl's.
    """

    def __init__(self, *args, timeout_key: str, seed_keys: Sequence[str] = (), **kwargs):
        super().__init__(*args, **kwargs)
        self._timeout_s = float(OmegaConf.select(self.config, timeout_key))
        self._run_seed = run_seed_of(self.config, seed_keys) if seed_keys else None
        self.tools = {name: bounded(tool, self._timeout_s) for name, tool in self.tools.items()}
        self.tool_parser.extract_tool_calls = careful(self.tool_parser.extract_tool_calls)
        for module in (tool_agent_loop, tool_parser):
            logging.getLogger(module.__file__).addFilter(ESCAPED)

    async def run(self, sampling_params: dict[str, Any], **kwargs) -> AgentLoopOutput:
        """Sample one response of several turns; `kwargs` are the row's fields and verl's `global_steps` and `session_id`."""
        if self._run_seed is not None:
            place = int(kwargs["global_steps"]), question_key(kwargs), int(kwargs["session_id"])
            # The sessions of a group share one dictionary.
            sampling_params = {**sampling_params, "seed": request_seed(self._run_seed, *place)}
        output = await super().run(sampling_params, **kwargs)
        output.extra_fields.setdefault(FAILURES, 0)
        output.extra_fields[SPANS] = spans_of(output.response_mask)
        return output

    async def _handle_generating_state(self, agent_data: Any, sampling_params: dict[str, Any], **kwargs) -> Any:
        """verl's, with a seed of its own for every turn: one seed would give all turns the same random numbers."""
        if "seed" in sampling_params and agent_data.assistant_turns:
            seed = request_seed(sampling_params["seed"], agent_data.assistant_turns, "", 0)
            sampling_params = {**sampling_params, "seed": seed}
        return await super()._handle_generating_state(agent_data, sampling_params, **kwargs)

    async def _call_tool(self, tool_call: Any, tools_kwargs: dict[str, Any], agent_data: Any) -> tuple:
        """verl's, in bounded time for tools that are classes as well; failed calls are counted."""
        try:
            # Function tools have ended by then, and said so.
            found = await asyncio.wait_for(super()._call_tool(tool_call, tools_kwargs, agent_data), 2 * self._timeout_s)
        except TimeoutError:
            text, reward, metrics = failure(f"no answer within {2 * self._timeout_s:g} s")
            found = ToolResponse(text=text), reward, metrics
        if found[2].get(FAILED):
            count_failure(agent_data)
        # verl has cut what a tool returned, and not what it raised.
        found[0].text = printable_answer(found[0].text, self.max_tool_response_length + len("...(truncated)..."))
        return found

    async def _handle_processing_tools_state(self, agent_data: Any) -> AgentState:
        """verl's; an answer that cannot be put into the response, such as an image, ends the rollout before it."""
        try:
            return await super()._handle_processing_tools_state(agent_data)
        except Exception as problem:  # noqa: BLE001 - one sample's bad luck
            logger.warning("a rollout ends before a tool's answer: %s", described(problem))
            count_failure(agent_data)
            return AgentState.TERMINATED
