"""Sampling seeds: a pure function of run, step, question and session, handed to the server without touching its caller."""

import asyncio
import itertools
from pathlib import Path

import hydra
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from verl_ext import agent_loop
from verl_ext.agent_loop import SeededSingleTurnAgentLoop, question_key, request_seed, run_seed_of

pytestmark = pytest.mark.verl

CONFIG = Path(agent_loop.__file__).with_name("agent_loops.yaml")


def test_seeds_are_hashes_that_no_process_or_version_changes():
    assert request_seed(1, 2, "q/0", 3) == 8325970732897968289


def test_every_part_changes_the_seed_and_a_group_has_distinct_ones():
    keys = itertools.product((0, 1, 11), (1, 11), ("a", "b", "1", ""), range(8))
    seeds = [request_seed(*key) for key in keys]
    assert len(set(seeds)) == len(seeds)


@given(st.integers(), st.integers(min_value=0), st.text(), st.integers(min_value=0))
def test_seeds_fit_into_63_bits(run_seed, step, question, session):
    assert 0 <= request_seed(run_seed, step, question, session) < 2**63


def test_vllm_and_torch_accept_the_largest_seed():
    import torch
    from vllm import SamplingParams

    assert SamplingParams(seed=2**63 - 1).seed == 2**63 - 1
    torch.Generator().manual_seed(2**63 - 1)


@pytest.mark.parametrize(
    ("config", "seed"),
    [
        ({"recipe": {"seed": 7}, "data": {"seed": 3}}, 7),
        ({"recipe": {"seed": 0}, "data": {"seed": 3}}, 0),
        ({"recipe": {"seed": None}, "data": {"seed": 3}}, 3),
        ({"recipe": {"rho": 1}, "data": {"seed": 3}}, 3),
        ({"data": {"seed": 3}}, 3),
    ],
)
def test_the_run_seed_is_that_of_the_first_key_that_has_one(config, seed):
    config = OmegaConf.create(config)
    OmegaConf.set_struct(config, True)  # as hydra makes it
    assert run_seed_of(config, ["recipe.seed", "data.seed"]) == seed


def test_a_run_without_a_seed_is_refused():
    with pytest.raises(ValueError, match=r"set recipe\.seed or data\.seed"):
        run_seed_of(OmegaConf.create({"data": {"seed": None}}), ["recipe.seed", "data.seed"])


@pytest.mark.parametrize(("exgrpo", "seed"), [({"seed": 7}, 7), ({"seed": None}, 3)])
def test_verl_makes_the_loop_of_our_yaml_with_the_runs_seed(monkeypatch, exgrpo, seed):
    def own_part(self, trainer_config, **kwargs):
        self.config = trainer_config.config

    monkeypatch.setattr(SingleTurnAgentLoop, "__init__", own_part)
    config = DictConfigWrap(OmegaConf.create({"exgrpo": exgrpo, "data": {"seed": 3}}))
    made = hydra.utils.instantiate(config=OmegaConf.load(CONFIG)[0], trainer_config=config, tokenizer=None)
    assert (type(made), made._run_seed) == (SeededSingleTurnAgentLoop, seed)


def test_rows_that_repeat_a_question_are_told_apart():
    rows = [{"extra_info": {"question_id": "q"}, "index": index} for index in range(3)]
    assert len({question_key(row) for row in rows}) == 3
    assert question_key({"extra_info": {"question_id": "q", "index": 4}}) == "q/4"


@pytest.fixture
def loop(monkeypatch):
    """The loop that verl would make of our yaml, with verl's own part of `run` recorded instead of run."""
    entry = OmegaConf.load(CONFIG)[0]
    assert entry.name == "seeded_single_turn"
    cls = hydra.utils.get_class(entry._target_)
    assert cls is SeededSingleTurnAgentLoop
    calls = []

    async def record(self, sampling_params, **kwargs):
        calls.append((sampling_params, kwargs))

    monkeypatch.setattr(SingleTurnAgentLoop, "run", record)
    instance = cls.__new__(cls)
    instance._run_seed = 5
    instance.calls = calls
    return instance


def test_each_session_samples_with_its_own_seed_and_leaves_the_shared_parameters_alone(loop):
    shared = {"temperature": 1.0}
    fields = {"extra_info": {"question_id": "q"}, "index": 9, "global_steps": 3, "raw_prompt": []}
    for session in range(4):
        asyncio.run(loop.run(shared, session_id=session, **fields))
    assert shared == {"temperature": 1.0}
    assert [call[0] for call in loop.calls] == [
        {"temperature": 1.0, "seed": request_seed(5, 3, "q/9", session)} for session in range(4)
    ]
    assert loop.calls[0][1] == {"session_id": 0, **fields}
