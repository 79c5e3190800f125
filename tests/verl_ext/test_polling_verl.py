"""Adaptive polling inside verl's own replay buffer."""

import time

import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import replay_buffer
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from verl_ext.polling import install
from verl_ext.watchdog import StalledError

pytestmark = pytest.mark.verl


@pytest.fixture
def buffer(monkeypatch):
    """verl's buffer over a TransferQueue in which one prompt runs, and finishes at the third look (`finishes=False`: never)."""
    buffer = ReplayBuffer("sync", OmegaConf.create({}), None, "drop", OmegaConf.create({}))
    buffer.looks, buffer.finishes = 0, True

    def listing():
        buffer.looks += 1
        finished = buffer.finishes and buffer.looks >= 3
        prompt = {"is_prompt": True, "status": "finished" if finished else "running", "global_steps": 1}
        return {"train": {"a": prompt, "a_0_0": {"status": "success"}}}

    monkeypatch.setattr(replay_buffer.tq, "kv_list", listing)
    monkeypatch.setattr(replay_buffer.tq, "kv_clear", lambda **kwargs: None)
    return buffer


def test_a_short_rollout_is_seen_within_a_fraction_of_verls_two_seconds(buffer):
    install(buffer, stall_timeout_s=60)
    start = time.monotonic()
    batch, _ = buffer.sample(1, "train", 1)
    assert batch.keys == ["a_0_0"]
    assert buffer.looks == 3
    assert 0.1 <= time.monotonic() - start < 1.0


def test_a_rollout_that_never_ends_ends_the_wait(buffer):
    buffer.finishes = False
    install(buffer, stall_timeout_s=0.3)
    with pytest.raises(StalledError, match="0 pending, 1 running, 0 finished, 0 failure, 1 trajectories"):
        buffer.sample(1, "train", 1)
