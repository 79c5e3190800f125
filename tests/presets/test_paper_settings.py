"""Every shipped script has the paper's settings, key by key: recipe/exgrpo/presets/paper_settings.yaml and its reasons."""

import pytest
from omegaconf import OmegaConf

from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.presets.compose import compose, experiment_scripts
from recipe.exgrpo.presets.paper_settings import UNSAID, Setting, compare, differences, flatten, load_table, settings_of

SCRIPTS = experiment_scripts()
TABLE = load_table()
# Only in the released script, not in the paper (method.md, "What is the paper's, what the released script's").
SCRIPT_ONLY = {
    "actor_rollout_ref.rollout.tensor_model_parallel_size": 2,
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 32768,
    "actor_rollout_ref.actor.clip_ratio": 0.2,
    "actor_rollout_ref.actor.grad_clip": 1.0,
    "trainer.save_freq": 50,
    "exgrpo.runtime.max_grad_norm": 500.0,
}


def entries():
    """(part, key, fields) of the table but for the ablations."""
    parts = {"common": TABLE["common"]} | TABLE["backbones"] | TABLE["methods"]
    for part, keys in parts.items():
        for key, fields in keys.items():
            yield part, key, fields


def main_run() -> dict[str, Setting]:
    return settings_of(TABLE, {"backbone": "qwen2.5-math-7b", "method": "exgrpo", "ablation": None})


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_has_the_papers_settings_or_a_reason(composed, script):
    for row in differences(composed(script)):
        assert row.why is not None, f"{row.key}: {row.setting}, {script.name} has {row.here!r}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_leaves_the_rest_of_exgrpo_at_its_default(composed, script):
    """What the table does not name must not differ either: ExGRPOConfig's defaults plus the table are the whole node."""
    config = composed(script)
    named = {"exgrpo.mask.band"} | {row.key for row in compare(config)}
    here = ExGRPOConfig.from_mapping(OmegaConf.to_container(config.exgrpo, resolve=True))
    expected = flatten({"exgrpo": OmegaConf.to_container(OmegaConf.structured(ExGRPOConfig()))})
    for key, value in flatten({"exgrpo": OmegaConf.to_container(OmegaConf.structured(here))}).items():
        if key not in named:
            assert value == expected[key], key


def test_every_key_of_the_table_exists():
    keys = flatten(OmegaConf.to_container(compose(), resolve=True))
    changes = {key for ablation in TABLE["ablations"].values() for key in ablation["change"]}
    assert ({key for _, key, _ in entries()} | changes) - keys.keys() == set()


def test_every_value_has_its_place():
    """The paper's has a table, equation, algorithm or section, ours a reason; the script's has a file by default."""
    for part, key, fields in entries():
        assert ("paper" in fields) == ("where" in fields), (part, key)
        assert "ours" not in fields or fields["why"], (part, key)
        assert "file" not in fields or "released" in fields, (part, key)
        assert {"paper", "released", "ours"} & set(fields), (part, key)


def test_every_value_of_ours_is_in_a_script(composed):
    """A reason for a difference that no script has any more must go."""
    seen = [(row.key, row.here, row.why) for script in SCRIPTS for row in differences(composed(script))]
    ours = [(key, fields["ours"], fields["why"]) for _, key, fields in entries() if "ours" in fields]
    ours = [one for one in ours if main_run().get(one[0], Setting()).source != one[1]]
    assert [one for one in ours if one not in seen] == []


def test_what_only_the_script_has_is_not_called_the_papers():
    settings = main_run()
    for key, value in SCRIPT_ONLY.items():
        assert (settings[key].paper, settings[key].released) == (UNSAID, value), key


def test_clipping_of_fresh_tokens_is_removed_in_the_papers_table_and_appendix_and_written_in_its_equation():
    """Table 4: loss_remove_clip True; App. D.1 and D.4: removed; Eq. 4: CLIP. The script clips until replay is on."""
    setting = main_run()["exgrpo.loss.fresh_clip"]
    assert (setting.paper, setting.where) == ("never", "Table 4, App. D.1, D.4")
    assert (setting.released, setting.ours) == ("before_replay", "always")
    assert "Eq. 4" in setting.why


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ("Table 3", {"sigma_0.5", "sigma_1.5", "mu_0.25"}),
        ("Table 7", {"retired_review"}),
    ],
)
def test_ablations_are_in_their_table(table, names):
    assert {name for name, ablation in TABLE["ablations"].items() if ablation.get("where") == table} == names


@pytest.mark.parametrize("name", ["no_question_selection", "no_trajectory_selection", "no_selection"])
def test_no_selection_is_in_table_6(name):
    assert TABLE["ablations"][name]["where"] == "Table 6"


@pytest.mark.parametrize("name", ["continuous_reward", "continuous_reward_on_policy"])
def test_continuous_rewards_train_for_two_epochs(composed, name):
    """Section 5.3: 2 epochs of 7k instructions."""
    [script] = [script for script in SCRIPTS if script.stem == name]
    config = composed(script)
    assert config.trainer.total_training_steps == 2 * 7000 // config.data.train_batch_size == 109


def test_the_released_profile_is_the_released_column():
    config = compose(["backbone=qwen2.5-math-7b", "method=exgrpo", "profile=released"])
    rows = {row.key: row for row in compare(config)}
    other = {key for key, row in rows.items() if row.setting.released not in (UNSAID, row.here)}
    assert other == {"exgrpo.rank"}  # null is lowest_entropy
    assert rows["exgrpo.loss.fresh_clip"].why == "profile=released"
    assert rows["exgrpo.question.sigma_unit"].why is None  # ours as well


def test_later_parts_add_to_earlier_ones_and_an_ablation_replaces():
    table = {
        "common": {"a": {"paper": 1, "where": "Table 4", "released": 1}, "b": {"released": 2}},
        "backbones": {"m": {"a": {"ours": 3, "why": "too small"}}},
        "methods": {"e": {"b": {"paper": 5, "where": "Eq. 4"}}},
        "ablations": {"no_b": {"where": "Table 6", "change": {"b": 0}}, "control": {"change": {"a": 7}}},
    }
    preset = {"backbone": "m", "method": "e", "ablation": None}
    assert settings_of(table, preset) == {
        "a": Setting(paper=1, where="Table 4", released=1, ours=3, why="too small"),
        "b": Setting(paper=5, where="Eq. 4", released=2),
    }
    assert settings_of(table, preset | {"ablation": "no_b"})["b"] == Setting(paper=0, where="Table 6")
    assert settings_of(table, preset | {"ablation": "control"})["a"].shipped() == 7


def test_columns_of_a_setting():
    whole = Setting(paper=1, released=2, ours=None, why="so")
    assert (whole.source, whole.shipped(), whole.shipped("released")) == (1, None, 2)
    assert (Setting(released=2).source, Setting(released=2).shipped()) == (2, 2)
    assert Setting(paper=1, ours=3).shipped("released") == 3
