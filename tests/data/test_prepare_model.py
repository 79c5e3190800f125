"""data/prepare_model.py: a model folder with a wider window."""

import json
import subprocess
import sys

import pytest
from transformers import AutoConfig

from data.errors import DataError
from data.prepare_model import widened
from recipe.exgrpo.presets.compose import ROOT

TOY = ROOT / "data" / "toy" / "model"


def prepare(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "data/prepare_model.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_copy_has_the_new_window_and_the_same_weights(tmp_path):
    out = tmp_path / "models" / "wide"
    assert prepare("--model", TOY, "--out", out).returncode == 0
    config = AutoConfig.from_pretrained(out)
    assert config.max_position_embeddings == 16384
    assert config.rope_parameters["rope_theta"] == 40000.0
    assert (out / "model.safetensors").read_bytes() == (TOY / "model.safetensors").read_bytes()
    changed = json.loads((out / "config.json").read_text())
    original = json.loads((TOY / "config.json").read_text())
    assert {key for key in changed if changed[key] != original.get(key)} == {
        "max_position_embeddings",
        "rope_parameters",
    }
    assert {path.name for path in out.iterdir()} == {path.name for path in TOY.iterdir()}


def test_the_old_place_of_rope_theta_is_changed_where_it_is_used():
    """config.json as on the hub for Qwen2.5-Math."""
    changed = widened({"rope_theta": 10000, "max_position_embeddings": 4096, "hidden_size": 8}, 16384, 40000.0)
    assert changed == {"rope_theta": 40000.0, "max_position_embeddings": 16384, "hidden_size": 8}


def test_scaled_positions_are_refused():
    with pytest.raises(DataError, match="rope_scaling"):
        widened({"rope_scaling": {"type": "yarn"}}, 16384, 40000.0)


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, word in ((("--model", tmp_path / "empty"), "config.json"), (("--model", TOY), "exists already")):
        result = prepare(*arguments, "--out", tmp_path if word == "exists already" else tmp_path / "out")
        assert result.returncode == 2
        assert word in result.stderr
        assert not (tmp_path / "out").exists()
