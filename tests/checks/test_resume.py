"""What a start would resume from: every way in which a restart destroyed a run, or went on as another experiment."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from run_folders import cut, save

from recipe.exgrpo.checks.findings import ERROR, NOTE, WARNING
from recipe.exgrpo.checks.preflight import PreflightError, check, inspect_run
from recipe.exgrpo.checks.resume import resume_findings
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.presets.compose import ROOT
from recipe.exgrpo.presets.compose import compose as compose_run
from recipe.exgrpo.runs.folder import TRACKER
from recipe.exgrpo.runs.record import record_start


def question(i: int, text: str = "") -> dict:
    return {
        "data_source": "toy",
        "prompt": [{"role": "user", "content": f"{text}{i} + 1 = ?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(i + 1)},
        "extra_info": {"split": "train", "index": i, "question_id": f"id{i}"},
    }


def write(path: Path, *rows: dict) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


@pytest.fixture(scope="module")
def shipped():
    config = compose_run(["hardware=tiny", f"actor_rollout_ref.model.path={ROOT / 'data/toy/model'}"])
    OmegaConf.set_struct(config, False)
    return config


@pytest.fixture
def configure(shipped, tmp_path):
    """configure(*overrides) -> a run in `tmp_path / "run"` on 16 questions."""
    data = write(tmp_path / "train.parquet", *map(question, range(16)))
    basic = [f"data.train_files={data}", f"data.val_files={data}", f"trainer.default_local_dir={tmp_path}/run"]
    return lambda *overrides: OmegaConf.merge(shipped, OmegaConf.from_dotlist([*basic, *overrides]))


@pytest.fixture
def run(configure, tmp_path):
    """A run folder at step 4, with an older checkpoint and the record of its start."""
    record_start(configure())
    for step in (2, 4):
        save(tmp_path / "run", step)
    return tmp_path / "run"


def texts(config, *severities: str) -> list[str]:
    return [finding.text for finding in resume_findings(Run.of(config)) if finding.severity in severities]


def refusal(config) -> str:
    """The one error, a sentence."""
    (text,) = texts(config, ERROR)
    assert text.endswith(".")
    assert "\n" not in text
    return text


RESUME_4 = "trainer.resume_mode=resume_path trainer.resume_from_path={run}/global_step_4"


def test_a_new_folder_has_nothing_to_say(configure):
    assert texts(configure(), ERROR, WARNING, NOTE) == []


def test_the_same_command_resumes(configure, run):
    assert texts(configure(), ERROR, WARNING) == []
    assert texts(configure(), NOTE) == [f"resume: from {run}/global_step_4, step 4."]


def test_run_and_check_refuse_what_is_found(configure, run):
    (run / TRACKER).unlink()
    text = refusal(configure())
    assert text in [finding.text for finding in inspect_run(configure()) if finding.severity == ERROR]
    with pytest.raises(PreflightError, match=TRACKER):
        check(configure())


# ---- the tracker


def test_a_missing_tracker_is_refused_with_both_ways_out(configure, run):
    (run / TRACKER).unlink()
    text = refusal(configure())
    assert "global_step_4, global_step_2" in text
    assert RESUME_4.format(run=run) in text
    assert "RUN (trainer.default_local_dir) to another folder" in text
    assert (run / "global_step_4/actor").is_dir()


@pytest.mark.parametrize("content", ["", "four", "\x00\x00"])
def test_a_tracker_without_a_number_is_refused(configure, run, content):
    (run / TRACKER).write_text(content)
    assert RESUME_4.format(run=run) in refusal(configure())


@pytest.mark.parametrize("step", [6, 50])
def test_a_tracker_that_names_a_folder_that_is_gone_is_refused(configure, run, step):
    (run / TRACKER).write_text(str(step))
    text = refusal(configure())
    assert f"global_step_{step}, which is gone" in text
    assert RESUME_4.format(run=run) in text


def test_a_tracker_and_no_checkpoint_at_all_is_refused(configure, run):
    for step in (2, 4):
        (run / f"global_step_{step}").rename(run / f"moved_{step}")
    text = refusal(configure())
    assert "no checkpoint is whole" in text
    assert "another folder" in text


def test_the_way_out_that_a_refusal_names_is_accepted(configure, run):
    (run / TRACKER).unlink()
    way = RESUME_4.format(run=run).split()
    assert way[1] in refusal(configure())
    assert texts(configure(*way), ERROR) == []


def test_an_interrupted_first_save_is_no_obstacle(configure, tmp_path):
    cut(save(tmp_path / "run", 2, track=False) / "data.pt")
    assert texts(configure(), ERROR) == []
    (text,) = texts(configure(), WARNING)
    assert "global_step_2" in text
    assert "incomplete" in text


def test_an_interrupted_later_save_is_no_obstacle_and_is_named(configure, run):
    cut(save(run, 6, track=False) / "actor/optim_world_size_1_rank_0.pt")
    assert texts(configure(), ERROR) == []
    (text,) = texts(configure(), WARNING)
    assert "global_step_6" in text
    assert "incomplete" in text
    assert "optim_world_size_1_rank_0.pt" in text


def test_a_whole_checkpoint_that_the_tracker_missed_is_named_with_its_key(configure, run):
    save(run, 6, track=False)
    (text,) = texts(configure(), WARNING)
    assert f"trainer.resume_from_path={run}/global_step_6" in text


# ---- the checkpoint


@pytest.mark.parametrize(
    "file", ["actor/model_world_size_1_rank_0.pt", "actor/optim_world_size_1_rank_0.pt", "data.pt"]
)
def test_a_cut_file_is_refused_with_the_newest_whole_one(configure, run, file):
    cut(run / "global_step_4" / file)
    text = refusal(configure())
    assert f"{run}/global_step_4/{file} is cut short" in text
    assert f"trainer.resume_from_path={run}/global_step_2 resumes" in text


def test_a_checkpoint_without_weights_is_refused(configure, run):
    (run / "global_step_4/actor/model_world_size_1_rank_0.pt").unlink()
    assert "no weights" in refusal(configure())


@pytest.mark.parametrize(("saved", "now"), [(1, 2), (2, 1), (8, 4)])
def test_another_number_of_ranks_is_refused(configure, tmp_path, saved, now):
    save(tmp_path / "run", 4, ranks=saved)
    config = configure(f"trainer.n_gpus_per_node={now}", "actor_rollout_ref.actor.ppo_mini_batch_size=8")
    text = refusal(config)
    assert text.startswith("trainer.n_gpus_per_node")
    assert f"saved by {saved}" in text
    assert f"run on {saved}" in text


# ---- resume_path and disable


@pytest.mark.parametrize("tail", ["/", "//", "/actor", "/actor/"])
def test_a_path_that_does_not_end_in_a_number_is_refused(configure, run, tail):
    path = f"{run}/global_step_4{tail}"
    text = refusal(configure("trainer.resume_mode=resume_path", f"trainer.resume_from_path={path}"))
    assert text.startswith("trainer.resume_from_path=")
    if not tail.strip("/"):
        assert f"write trainer.resume_from_path={run}/global_step_4" in text


def test_a_folder_with_zeros_before_its_number_is_refused(configure, run):
    (run / "global_step_4").rename(run / "global_step_04")
    path = f"{run}/global_step_04"
    text = refusal(configure("trainer.resume_mode=resume_path", f"trainer.resume_from_path={path}"))
    assert "must end in global_step_N; without zeros before its number" in text
    assert "names global_step_4, which is gone" in refusal(configure())


@pytest.mark.parametrize("value", ["null", "5", "''", "/nowhere/checkpoint"])
def test_a_path_that_is_none_is_refused(configure, run, value):
    config = configure("trainer.resume_mode=resume_path", f"trainer.resume_from_path={value}")
    assert refusal(config).startswith("trainer.resume_from_path")


def test_a_path_that_is_gone_is_refused_with_the_newest(configure, run):
    config = configure("trainer.resume_mode=resume_path", f"trainer.resume_from_path={run}/global_step_3")
    assert RESUME_4.format(run=run) in refusal(config)


def test_going_back_in_the_same_folder_is_refused_and_in_another_is_not(configure, run, tmp_path):
    back = ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={run}/global_step_2")
    text = refusal(configure(*back))
    assert "global_step_4" in text
    assert "another folder" in text
    assert texts(configure(*back, f"trainer.default_local_dir={tmp_path}/other"), ERROR) == []


def test_resume_disabled_does_not_write_over_checkpoints(configure, run, tmp_path):
    assert "global_step_4, global_step_2" in refusal(configure("trainer.resume_mode=disable"))
    assert texts(configure("trainer.resume_mode=disable", f"trainer.default_local_dir={tmp_path}/new"), ERROR) == []


# ---- another experiment


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("exgrpo.policy=on_policy", "policy"),
        ("exgrpo.rho=0.25", "policy"),
        ("exgrpo.question.mu=0.25", "policy"),
        ("exgrpo.gate=always", "policy"),
        ("exgrpo.loss.shaping=none", "loss"),
        ("actor_rollout_ref.actor.entropy_coeff=0", "loss"),
        ("algorithm.norm_adv_by_std_in_grpo=true", "loss"),
        ("actor_rollout_ref.rollout.n=4", "group_size"),
        ("actor_rollout_ref.rollout.temperature=0.7", "temperature"),
        ("actor_rollout_ref.model.path=Qwen/Qwen2.5-7B", "model"),
        ("actor_rollout_ref.model.lora_rank=8", "model"),
        ("actor_rollout_ref.model.lora_alpha=8", "model"),
        ("data.max_response_length=32", "length"),
        ("preset.template=think", "chat_template"),
        ("data.apply_chat_template_kwargs.enable_thinking=false", "chat_template"),
        ("reward.custom_reward_function.name=another", "reward"),
        ("reward.custom_reward_function.reward_kwargs.think_end=first", "reward"),
        ("reward.reward_manager.module.path=pkg://verl_ext.rewards.rules", "reward"),
    ],
)
def test_another_experiment_is_refused_with_the_key_that_accepts_it(configure, run, override, name):
    (text,) = texts(configure(override), ERROR)
    key = override.partition("=")[0]
    assert text.startswith("exgrpo.resume_allow")
    assert key in text
    assert f"exgrpo.resume_allow=[{name}]" in text
    accepted = configure(override, f"exgrpo.resume_allow=[{name}]")
    assert texts(accepted, ERROR) == []
    assert any(key in text for text in texts(accepted, WARNING))


def test_all_names_are_in_one_refusal(configure, run):
    changed = ("exgrpo.policy=refill", "actor_rollout_ref.rollout.n=4")
    assert "exgrpo.resume_allow=[group_size,policy]" in refusal(configure(*changed))
    (text,) = texts(configure(*changed, "exgrpo.resume_allow=[policy]"), ERROR)
    assert "exgrpo.resume_allow=[group_size,policy]" in text


def test_the_same_ids_with_other_prompts_are_found(configure, run, tmp_path):
    write(tmp_path / "train.parquet", *(question(i, "what is ") for i in range(16)))
    text = refusal(configure())
    assert "data.train_files has other contents" in text
    assert "exgrpo.resume_allow=[data]" in text
    assert texts(configure("exgrpo.resume_allow=[data]"), ERROR) == []


def test_the_same_data_elsewhere_is_the_same_data(configure, run, tmp_path):
    (tmp_path / "copy.parquet").write_bytes((tmp_path / "train.parquet").read_bytes())
    assert texts(configure(f"data.train_files={tmp_path}/copy.parquet"), ERROR, WARNING) == []


def test_what_does_not_change_the_experiment_is_noted(configure, run):
    changed = (
        "trainer.total_training_steps=9",
        "actor_rollout_ref.actor.optim.lr=2e-4",
        "exgrpo.runtime.poll_max_s=1.0",
    )
    config = configure(*changed)
    assert texts(config, ERROR, WARNING) == []
    (text,) = [text for text in texts(config, NOTE) if text.startswith("changed")]
    for override in changed:
        assert override.partition("=")[0] in text
    assert "was 2 and is 9" in text


def test_a_run_goes_on_in_another_folder_as_the_same_experiment(configure, run, tmp_path):
    elsewhere = (f"trainer.default_local_dir={tmp_path}/other", *RESUME_4.format(run=run).split())
    assert texts(configure(*elsewhere), ERROR) == []
    assert "policy" in refusal(configure(*elsewhere, "exgrpo.policy=on_policy"))


def test_the_newest_record_counts(configure, run):
    accepted = ("exgrpo.policy=on_policy", "exgrpo.resume_allow=[policy]")
    record_start(configure(*accepted))
    assert texts(configure("exgrpo.policy=on_policy"), ERROR) == []
    assert "exgrpo.policy was 'on_policy'" in refusal(configure())


@pytest.mark.parametrize("broken", ["run.json", "config.yaml"])
def test_a_record_that_is_not_there_is_not_compared(configure, run, broken):
    (run / "record/start-000" / broken).unlink()
    assert texts(configure(), ERROR) == []


def test_a_damaged_record_is_refused(configure, run):
    (run / "record/start-000/config.yaml").write_text("a: [")
    assert "start-000/config.yaml is not YAML" in refusal(configure())


def test_a_folder_in_use_is_named(configure, run):
    from recipe.exgrpo.runs import lock

    (run / lock.NAME).write_text(json.dumps({"pid": 1, "host": "here", "since": "today"}))
    with open(run / lock.NAME) as other:
        lock.fcntl.flock(other, lock.fcntl.LOCK_EX)
        assert "process 1 on here, since today" in refusal(configure())
