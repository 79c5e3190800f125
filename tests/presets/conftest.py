"""The shipped scripts, composed as they are."""

from pathlib import Path

import pytest

from recipe.exgrpo.presets.compose import compose, script_overrides

SWITCHES = (
    "MODEL",
    "TOKENIZER",
    "TRAIN",
    "VAL",
    "RUN",
    "NNODES",
    "GPUS",
    "HARDWARE",
    "LOGGER",
    "TINY",
    "BAND",
    "METHOD",
    "REWARD_MODEL",
)


@pytest.fixture(autouse=True)
def no_switches(monkeypatch):
    """The scripts as shipped, whatever this shell exports."""
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def composed():
    """composed(script) -> its configuration, composed once."""
    found = {}

    def get(script: Path):
        if script not in found:
            found[script] = compose(script_overrides(script))
        return found[script]

    return get
