"""Shared by all tests: the platform is chosen before anything imports verl, and run configurations are composed here."""

import importlib.util
import signal
from pathlib import Path

import pytest

from verl_ext.platform import prepare_environment

# verl reads its platform once, while it is being imported: unit tests that import it come before tests/verl.
prepare_environment()
# A shell gives its background jobs an ignored SIGINT, which children inherit: `make test &` must test Ctrl-C too.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def compose():
    """compose(*overrides) -> the run configuration of `exgrpo_trainer.yaml`, as `python -m recipe.exgrpo.main` sees it."""
    import hydra

    # verl's yaml files by path: `pkg://` would import verl, which takes longer than all unit tests together.
    verl_configs = Path(importlib.util.find_spec("verl").origin).parent / "trainer" / "config"

    def build(*overrides: str):
        with hydra.initialize_config_dir(str(ROOT / "recipe" / "exgrpo" / "config"), version_base=None):
            return hydra.compose(
                "exgrpo_trainer", overrides=[f"hydra.searchpath=[file://{verl_configs}]", "hardware=cpu", *overrides]
            )

    return build
