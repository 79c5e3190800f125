"""Sizes as findings print them, and the estimates that they decide."""

from types import SimpleNamespace

import pytest

from recipe.exgrpo.checks import memory
from recipe.exgrpo.checks.disk import _space
from recipe.exgrpo.checks.findings import NOTE, WARNING
from recipe.exgrpo.checks.memory import GpuEstimate
from recipe.exgrpo.checks.sizes import GIB, MIB, gb, gib


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 MiB"),
        (5 * MIB, "5 MiB"),
        (GIB - 1, "1,024 MiB"),
        (GIB, "1.0 GiB"),
        (7.26 * GIB, "7.3 GiB"),
        (2**41, "2,048.0 GiB"),
    ],
)
def test_memory(size, text):
    assert gib(size) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 MB"), (3_998_160, "4 MB"), (999e6, "999 MB"), (1e9, "1.0 GB"), (91.4e9, "91.4 GB")]
)
def test_disk(size, text):
    assert gb(size) == text


def test_a_toy_checkpoint_is_not_of_0_gb(tmp_path):
    assert "2 checkpoints of 4 MB, 78.0 GB are free" in _space(tmp_path, 78e9, 2, 3_998_160).text


def estimate(update: float = 0.0, rollout: float = 0.0) -> GpuEstimate:
    return GpuEstimate(fixed=0.0, update=update * GIB, rollout=rollout * GIB, kv_tokens=10_000)


@pytest.mark.parametrize(
    ("size", "severity"), [(23.4, NOTE), (23.5, WARNING), (23.9, WARNING), (24.0, WARNING), (30, WARNING)]
)
def test_the_whole_card_is_a_warning_as_it_is_printed(size, severity):
    found = memory._update_finding(estimate(update=size), 24)
    assert found.severity == severity
    assert (f"{size:.0f} of 24 GiB" in found.text) is True
    run = SimpleNamespace(rollout=SimpleNamespace(max_model_len=100))
    rollout = list(memory._rollout_findings(run, estimate(rollout=size), 24))
    assert [finding.severity for finding in rollout] == ([WARNING, NOTE] if severity == WARNING else [NOTE])


@pytest.mark.parametrize(("ram", "here", "severity"), [(8, True, WARNING), (8, False, NOTE), (64, True, NOTE)])
def test_host_memory_is_held_against_this_machines(monkeypatch, ram, here, severity):
    monkeypatch.setattr(memory, "host_bytes", lambda run, shape: 32 * GIB)
    monkeypatch.setattr(memory, "experience_bytes", lambda run: 0.5 * GIB)
    run = SimpleNamespace(imported=0.25 * GIB if here else 0)
    found = memory._host_finding(run, None, ram * GIB, here)
    assert found.severity == severity
    assert "32.0 GiB per node, 512 MiB of it experience" in found.text
    assert ("and 256 MiB from exgrpo.experience.init_from" in found.text) is here
    assert f"this machine has {ram}.0 GiB" in found.text
