"""The record that a run leaves of itself at every start."""

import hashlib
import json
import shutil
import subprocess

import pytest
from omegaconf import OmegaConf

from recipe.exgrpo.presets.compose import ROOT
from recipe.exgrpo.presets.compose import compose as compose_run
from recipe.exgrpo.runs import record as run_record


@pytest.fixture
def config(tmp_path):
    for name in ("train", "val"):
        (tmp_path / f"{name}.parquet").write_bytes(name.encode())
    (tmp_path / "train.manifest.json").write_text('{"rows": 3, "template": "plain"}')
    return compose_run(
        [
            "hardware=tiny",
            "ablation=rho_0.25",
            f"data.train_files={tmp_path}/train.parquet",
            f"data.val_files=[{tmp_path}/val.parquet]",
            f"trainer.default_local_dir={tmp_path}/run",
            "exgrpo.seed=11",
        ]
    )


def test_the_record_says_what_the_run_was(config):
    folder = run_record.record_start(config)
    saved = OmegaConf.load(folder / "config.yaml")
    assert saved.exgrpo.rho == 0.25
    assert saved.actor_rollout_ref.actor.loss_scale_factor == 64, "resolved"
    record = json.loads((folder / "run.json").read_text())
    assert record["preset"]["ablation"] == "rho_0.25"
    assert record["versions"]["verl"] == "0.9.1"
    assert record["seeds"] == {
        "exgrpo.seed": 11,
        "data.seed": 0,
        "actor_rollout_ref.rollout.seed": 42,
        "actor_rollout_ref.actor.fsdp_config.seed": 42,
    }
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert record["git"]["commit"] == commit.stdout.strip()


def test_data_files_are_recorded_with_manifest_and_hash(config):
    record = json.loads((run_record.record_start(config) / "run.json").read_text())
    train, val = record["data"]
    assert (train["key"], val["key"]) == ("data.train_files", "data.val_files")
    assert train["sha256"] == hashlib.sha256(b"train").hexdigest()
    assert train["manifest"] == {"rows": 3, "template": "plain"}
    assert val["manifest"] is None


def test_a_start_whose_elder_is_gone_gets_a_number_of_its_own(config, tmp_path):
    """As in a run folder that was copied without its first record."""
    first, second = run_record.record_start(config), run_record.record_start(config)
    shutil.rmtree(first)
    assert run_record.record_start(config).name == "start-002"
    (tmp_path / "run/record/start-of-notes").mkdir()
    assert [path.name for path in run_record.starts(tmp_path / "run")] == ["start-001", "start-002"]
    config.exgrpo.seed = 12
    second.rename(second.with_name("start-1000"))
    run_record.record_start(config)
    assert run_record.last_config(tmp_path / "run")["exgrpo"]["seed"] == 12
    assert run_record.starts(tmp_path / "run")[-1].name == "start-1001"


def test_a_damaged_record_is_named(config, tmp_path):
    assert run_record.last_config(tmp_path / "run") == {}
    file = run_record.record_start(config) / "config.yaml"
    for content in (b"", b"a: [", b"- 1", b"\xff"):
        file.write_bytes(content)
        with pytest.raises(run_record.RecordError, match=r"start-000/config\.yaml is not YAML, or no configuration"):
            run_record.last_config(tmp_path / "run")


def test_every_start_keeps_its_own_record(config):
    first = run_record.record_start(config)
    config.exgrpo.rho = 0.5
    second = run_record.record_start(config)
    assert (first.name, second.name) == ("start-000", "start-001")
    assert OmegaConf.load(first / "config.yaml").exgrpo.rho == 0.25
    assert OmegaConf.load(second / "config.yaml").exgrpo.rho == 0.5


def test_a_start_that_fails_leaves_nothing(config, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        run_record.record_start(config)
    parent = ROOT / config.trainer.default_local_dir / "record"
    assert list(parent.iterdir()) == []


def test_a_folder_that_is_no_checkout_has_no_commit(tmp_path):
    assert run_record.git_state(tmp_path) is None


def test_changed_files_are_named(tmp_path):
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    (tmp_path / "new.txt").write_text("")
    assert run_record.git_state(tmp_path)["changed"] == ["new.txt"]
