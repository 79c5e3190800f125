"""Every value in the shipped yaml files gives its reason, and what the reasons say about verl's defaults is so."""

import re

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from recipe.exgrpo.presets.compose import CONFIG_DIR, verl_config_dir
from recipe.exgrpo.presets.paper_settings import flatten, load_table

FILES = sorted(CONFIG_DIR.rglob("*.yaml"))
# The file's own header explains these: what the run is, and the method's own keys (recipe/exgrpo/core/config.py).
EXPLAINED = ("preset.", "exgrpo.", "hydra.", "defaults")


def reasons(path):
    """(dotted key, value, comment) of every line `key: value`."""
    parents: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        found = re.match(r"( *)([\w.-]+):(?: +([^#]*?))?\s*(#.*)?$", line)
        if not found:
            continue
        indent, key, value, comment = len(found[1]), found[2], found[3], found[4]
        parents = [(depth, name) for depth, name in parents if depth < indent]
        if value:
            yield ".".join([*(name for _, name in parents), key]), yaml.safe_load(value), comment or ""
        parents.append((indent, key))


@pytest.fixture(scope="module")
def verl_defaults():
    with hydra.initialize_config_dir(str(verl_config_dir()), version_base=None):
        return flatten(OmegaConf.to_container(hydra.compose("ppo_trainer"), resolve=False))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_value_has_its_reason(path):
    bare = [key for key, _, comment in reasons(path) if not comment and not key.startswith(EXPLAINED)]
    assert bare == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_says_what_it_is(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_" or path.stem == "exgrpo_trainer"
    assert any(re.match(r"# [A-Z0-9]", line) for line in lines[:2])


def test_what_the_comments_say_about_verls_defaults_is_so(verl_defaults):
    words = {"never": -1, "greedy": 0}
    claims = 0
    for path in FILES:
        for key, value, comment in reasons(path):
            claim = re.search(r"\(verl: ([\w.-]+)\)", comment)
            if claim:
                claimed = words.get(claim[1], yaml.safe_load(claim[1]))
                assert verl_defaults[key] == claimed, key
                assert value != claimed, key
                claims += 1
            if "verl's default, set explicitly" in comment:
                assert str(verl_defaults[key]) == str(value) or verl_defaults[key] == float(value), key
                claims += 1
    assert claims > 20


def test_no_value_is_verls_default_without_saying_so(verl_defaults):
    """A line that changes nothing, and does not say so, misleads."""
    for key, value, comment in reasons(CONFIG_DIR / "exgrpo_trainer.yaml"):
        if key in verl_defaults and verl_defaults[key] == value and not key.startswith(EXPLAINED):
            assert "set explicitly" in comment, key


@pytest.mark.parametrize(
    ("words", "column", "at_least"), [("(as in )?(the )?paper", "paper", 15), ("released script", "released", 4)]
)
def test_every_value_that_is_called_theirs_is_theirs_in_the_table(words, column, at_least):
    """presets/paper_settings.yaml is what scripts are compared with: a value missing there could change unseen."""
    table = load_table()
    groups = (table["common"], *(part for group in ("backbones", "methods") for part in table[group].values()))
    known = {key for group in groups for key, fields in group.items() if column in fields}
    called = {key for path in FILES for key, _, comment in reasons(path) if re.match(f"# {words}", comment)}
    assert len(called) >= at_least
    assert called - known == set()
