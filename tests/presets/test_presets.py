"""Every shipped script composes to what its name says, whatever its switches; test_paper_settings.py has the values."""

import os
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.lab.suites import variant
from recipe.exgrpo.presets.compose import (
    CONFIG_DIR,
    ROOT,
    CompositionError,
    compose,
    experiment_scripts,
    resolve_target,
    script_overrides,
)
from recipe.exgrpo.presets.paper_settings import flatten, load_table

SCRIPTS = experiment_scripts()
TABLE = load_table()


def names(group: str) -> set[str]:
    return {path.stem for path in (CONFIG_DIR / group).glob("*.yaml")}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_name_of_a_script_is_what_it_runs(composed, script):
    preset = composed(script).preset
    if script.parent.name == "ablations":
        assert (preset.backbone, preset.method, preset.ablation) == ("qwen2.5-math-7b", "exgrpo", script.stem)
    elif script.parent.name == "start":
        assert (preset.backbone, preset.method) == (script.stem, "exgrpo")
    elif script.stem.startswith("continuous_reward"):
        assert (preset.backbone, preset.method) == ("qwen2.5-7b", script.stem.replace("_reward", ""))
    elif script.stem != "masked_grpo":
        assert f"{preset.backbone}_{preset.method}" == script.stem
        assert preset.ablation is None


def test_a_tiny_run_saves_what_the_same_command_resumes_from(monkeypatch):
    """The help of every script says so, TINY=1 or not."""
    monkeypatch.setenv("TINY", "1")
    trainer = compose(script_overrides(SCRIPTS[0])).trainer
    assert trainer.total_training_steps == 2
    assert (trainer.save_freq > 0, trainer.resume_mode) == (True, "auto")


def test_there_is_a_script_for_every_backbone_method_and_ablation():
    stems = {path.stem for path in SCRIPTS}
    start = {path.stem for path in SCRIPTS if path.parent.name == "start"}
    backbones = set(TABLE["backbones"]) - {"qwen2.5-7b"} - start
    assert len(start) == 6
    assert {f"{name}_{method}" for name in backbones for method in ("exgrpo", "on_policy")} <= stems
    assert {path.stem for path in SCRIPTS if path.parent.name == "ablations"} == set(TABLE["ablations"])
    assert {"masked_grpo", "continuous_reward", "continuous_reward_on_policy", "qwen2.5-math-7b_refill"} <= stems


def test_table_and_presets_have_the_same_names():
    assert (names("backbone"), names("method"), names("ablation")) == tuple(
        set(TABLE[group]) for group in ("backbones", "methods", "ablations")
    )


def test_baselines_differ_in_nothing_but_the_policy(composed):
    baselines = [path for path in SCRIPTS if path.stem.endswith("_on_policy")]
    assert len(baselines) == 8
    for path in baselines:
        other = path.with_name(path.name.replace("_on_policy", "" if path.stem.startswith("continuous") else "_exgrpo"))
        a, b = (flatten(OmegaConf.to_container(composed(one), resolve=True)) for one in (path, other))
        assert (a["exgrpo.policy"], b["exgrpo.policy"]) == ("on_policy", "exgrpo")
        changed = {key for key in a if a[key] != b[key]} - {"exgrpo.policy", "preset.method"}
        # Names and folders of the two runs.
        assert all(key.endswith(("experiment_name", "default_local_dir", "experiment")) for key in changed), changed


def test_the_recommended_preset_is_the_laboratorys_refill(composed):
    """What docs/evidence.md recommends and what it tested must be one thing."""
    config = composed(ROOT / "scripts" / "qwen2.5-math-7b_refill.sh")
    here = ExGRPOConfig.from_mapping(OmegaConf.to_container(config.exgrpo, resolve=True))
    assert here == variant("refill", seed=config.exgrpo.seed)


# Variants of the study that are presets of training runs are read from these, by name.
PRESETS = {
    **{f"ablation={name}": name for name in sorted(names("ablation"))},
    "method=refill": "refill",
    "method=on_policy": "on_policy",
    "method=exgrpo": "exgrpo",
}


@pytest.mark.parametrize(("override", "name"), PRESETS.items())
def test_a_variant_of_the_laboratory_is_the_preset_of_its_name(override, name):
    config = compose(["backbone=qwen2.5-math-7b", override])
    here = ExGRPOConfig.from_mapping(OmegaConf.to_container(config.exgrpo, resolve=True))
    there = variant(name, seed=config.exgrpo.seed)
    assert here == there


@pytest.mark.parametrize("band", ["easy", "medium", "hard"])
def test_masked_grpo_takes_its_band(monkeypatch, band):
    monkeypatch.setenv("BAND", band)
    config = compose(script_overrides(ROOT / "scripts" / "masked_grpo.sh"))
    assert (config.exgrpo.policy, config.exgrpo.mask.band) == ("masked", band)
    assert config.trainer.default_local_dir.endswith(band)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_tiny_run_keeps_the_experiment(composed, monkeypatch, script):
    """TINY=1 changes sizes, model, data and the threshold, and nothing else of the method."""
    monkeypatch.setenv("TINY", "1")
    tiny = flatten({"exgrpo": OmegaConf.to_container(compose(script_overrides(script)).exgrpo, resolve=True)})
    full = flatten({"exgrpo": OmegaConf.to_container(composed(script).exgrpo, resolve=True)})
    traces = "exgrpo.experience.init_from"  # data, like the questions
    assert bool(tiny[traces]) == bool(full[traces])
    assert tiny | {key: full[key] for key in ("exgrpo.start_threshold", traces)} == full


def test_switches_reach_the_configuration(monkeypatch):
    given = {"MODEL": "/m", "TOKENIZER": "/t", "TRAIN": "/a", "VAL": "/b", "RUN": "/r/mine", "NNODES": "2", "GPUS": "4"}
    for name, value in (given | {"LOGGER": "both", "HARDWARE": "gpu_40gb"}).items():
        monkeypatch.setenv(name, value)
    config = compose(resolve_target(["scripts/luffy_exgrpo.sh", "exgrpo.rho=0.3"]))
    assert (config.actor_rollout_ref.model.path, config.actor_rollout_ref.model.tokenizer_path) == ("/m", "/t")
    assert (config.data.train_files, config.data.val_files) == ("/a", "/b")
    assert (config.trainer.default_local_dir, config.trainer.experiment_name) == ("/r/mine", "mine")
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node, config.exgrpo.rho) == (2, 4, 0.3)
    assert config.trainer.logger == ["console", "wandb", "tensorboard"]
    assert config.actor_rollout_ref.actor.fsdp_config.optimizer_offload


@pytest.mark.parametrize("run", ["a b", "it's, (a) #1=x", "2024", "true", "[a]/b c"])
def test_a_run_folder_may_have_any_name(monkeypatch, run):
    monkeypatch.setenv("RUN", f"/r/{run}")
    trainer = compose(resolve_target(["scripts/luffy_exgrpo.sh"])).trainer
    assert trainer.default_local_dir == f"/r/{run}"
    assert trainer.experiment_name == Path(run).name


def test_several_data_files_and_no_tokenizer_are_values_too(monkeypatch):
    monkeypatch.setenv("TRAIN", "[/a/x y.parquet,/b.parquet]")
    monkeypatch.setenv("TOKENIZER", "null")
    config = compose(resolve_target(["scripts/llama-3.1-8b_exgrpo.sh"]))
    assert config.data.train_files == ["/a/x y.parquet", "/b.parquet"]
    assert config.actor_rollout_ref.model.tokenizer_path is None


def test_a_switch_behind_the_command_is_refused():
    with pytest.raises(CompositionError, match="RUN goes before the command: RUN=here bash"):
        script_overrides(ROOT / "scripts" / "luffy_exgrpo.sh", ["RUN=here"])


@pytest.mark.parametrize("hardware", sorted(path.stem for path in (CONFIG_DIR / "hardware").glob("*.yaml")))
def test_every_hardware_preset_composes_with_a_backbone(hardware):
    config = compose(["backbone=qwen2.5-math-7b", f"hardware={hardware}"])
    assert config.trainer.device == ("cpu" if hardware in ("cpu", "tiny") else "cuda")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["backbone=gpt"], "gpt"),
        (["exgrpo.rhoo=0.5"], "rhoo"),
        (["scripts/nowhere.sh"], "nowhere.sh"),
        (["scripts/luffy_exgrpo.sh", "--frobnicate"], "--frobnicate"),
    ],
)
def test_a_target_that_makes_no_configuration_is_named(arguments, word):
    with pytest.raises(CompositionError, match=word):
        compose(resolve_target(arguments))


def test_an_unknown_logger_is_refused(monkeypatch):
    monkeypatch.setenv("LOGGER", "wandbb")
    with pytest.raises(CompositionError, match="LOGGER must be"):
        script_overrides(ROOT / "scripts" / "luffy_exgrpo.sh")


# ---- the scripts themselves


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_thin_strict_and_executable(script):
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert "launch.sh" in text
    assert "launch " in text and '-- "$@"' in text  # noqa: PT018
    assert "Cost" in text
    assert len(text.splitlines()) < 25
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_says_what_it_is_how_to_call_it_and_what_it_costs(script, tmp_path):
    process = subprocess.run(["bash", script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert process.stdout.startswith(script.read_text().splitlines()[1].removeprefix("# "))
    assert f"Usage: [NAME=value ...] bash {script} " in process.stdout
    assert "Cost" in process.stdout
    assert all(f"  {name} " in process.stdout or f", {name} " in process.stdout for name in ("RUN", "GPUS", "LOGGER"))
    assert list(tmp_path.iterdir()) == []
