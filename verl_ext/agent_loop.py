"""Single-turn rollout whose sampling seeds follow from the run, so that a run can be repeated.

Selected by `actor_rollout_ref.rollout.agent.default_agent_loop=seeded_single_turn` with `agent_loop_config_path` naming
`agent_loops.yaml` beside this file, which also says where the run's seed is. verl's own switch, `full_determinism`, gives
every request one seed, so that all members of a group would be the same response.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from verl_ext.tools import SEEDED

LOOPS = Path(__file__).with_name("agent_loops.yaml")
SEED_BITS = 63  # vLLM takes a signed 64-bit integer
PERSON = b"exgrpo"  # a part of every hash: with another one, the same run would sample other responses


def choose_loop(agent: DictConfig, seeded: bool) -> None:
    """Make ours known in a run's `rollout.agent`, unless it names a file of loops itself, and take the seeded one if asked.

    In our file tools answer in bounded time under verl's own name for its loop, `tool_agent`, too. Raises ValueError for a
    loop that has no seeded variant.
    """
    if seeded:
        chosen = agent.default_agent_loop
        if chosen not in SEEDED:
            raise ValueError(f"actor_rollout_ref.rollout.agent.default_agent_loop={chosen} takes no sampling seeds.")
        agent.default_agent_loop = SEEDED[chosen]
    if seeded or not agent.agent_loop_config_path:
        agent.agent_loop_config_path = str(LOOPS)


def request_seed(run_seed: int, step: int, question: str, session: int) -> int:
    """The sampling seed of one request, in [0, 2**63): a hash, so it is the same in every process and machine.

    Args:
        run_seed: seed of the run.
        step: global step whose policy answers.
        question: stable id of the question.
        session: index of the response within its group, 0 to K-1.
    """
    key = f"{run_seed}\x1f{step}\x1f{session}\x1f{question}".encode()
    digest = hashlib.blake2b(key, digest_size=8, person=PERSON).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def run_seed_of(config: DictConfig, keys: Sequence[str]) -> int:
    """The run's seed: the value of the first of `keys` that has one. Raises ValueError when none has."""
    for key in keys:
        seed = OmegaConf.select(config, key)
        if seed is not None:
            return int(seed)
    raise ValueError(f"seeded rollouts need a seed: set {' or '.join(keys)}.")


def question_key(fields: dict[str, Any]) -> str:
    """What tells one dataset row from another: the question id, and the row's index.

    The index keeps rows that repeat a question (as benchmarks scored over several samples do) apart.
    """
    extra = fields.get("extra_info") or {}
    question = extra.get("question_id", "")
    return f"{question}/{fields.get('index', extra.get('index', ''))}"


class SeededSingleTurnAgentLoop(SingleTurnAgentLoop):
    """verl's single-turn loop with a sampling seed of its own for each request, in training and validation.

    Args:
        seed_keys: where the run's seed may be in its configuration; the first key with a value counts.
        args, kwargs: verl's.
    """

    def __init__(self, *args, seed_keys: Sequence[str], **kwargs):
        super().__init__(*args, **kwargs)
        self._run_seed = run_seed_of(self.config, seed_keys)

    async def run(self, sampling_params: dict[str, Any], **kwargs) -> AgentLoopOutput:
        """Sample one response; `kwargs` are the row's fields and verl's `global_steps` and `session_id`."""
        seed = request_seed(
            self._run_seed, int(kwargs["global_steps"]), question_key(kwargs), int(kwargs["session_id"])
        )
        # The sessions of a group share one dictionary.
        return await super().run({**sampling_params, "seed": seed}, **kwargs)
