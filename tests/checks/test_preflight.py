"""Refusals before anything starts: each names its key. The configuration is the one that a real run composes."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from recipe.exgrpo.checks.preflight import PreflightError, check


def row(i: int, **extra_info) -> dict:
    return {
        "data_source": "toy",
        "prompt": [{"role": "user", "content": f"{i} + 1 = ?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(i + 1)},
        "extra_info": {"split": "train", "index": i, "question_id": f"id{i}"} | extra_info,
    }


def write(path, rows) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Overrides for a run on two training files and one for validation."""
    folder = tmp_path_factory.mktemp("data")
    train = [write(folder / f"train{i}.parquet", [row(64 * i + j) for j in range(64)]) for i in range(2)]
    # Validation is not replayed: ids may repeat there.
    val = write(folder / "val.parquet", [row(0), row(0)])
    model = "actor_rollout_ref.model.path=Qwen/Qwen2.5-7B-Instruct"
    # No checkpoints: this machine's free disk is not the subject here.
    return [model, "trainer.save_freq=-1", f"data.train_files=[{','.join(train)}]", f"data.val_files={val}"]


@pytest.fixture(scope="module")
def configure(compose, files):
    """configure(*overrides) -> the shipped configuration with some values replaced (composing anew takes a second)."""
    shipped = compose(*files)
    OmegaConf.set_struct(shipped, False)
    return lambda *overrides: OmegaConf.merge(shipped, OmegaConf.from_dotlist(list(overrides)))


def refused(config) -> str:
    with pytest.raises(PreflightError) as refusal:
        check(config)
    return str(refusal.value)


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
def test_the_shipped_configuration_passes(compose, files, hardware):
    check(compose(*files, f"hardware={hardware}"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["exgrpo.policy=on_policy"],
        ["actor_rollout_ref.rollout.n=2", "data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=4"],
        ["data.max_response_length=64"],  # the loss scale follows
        ["actor_rollout_ref.actor.loss_agg_mode=token-mean", "actor_rollout_ref.actor.loss_scale_factor=null"],
        ["actor_rollout_ref.actor.use_kl_loss=true"],
        ["exgrpo.policy=on_policy", "algorithm.filter_groups.enable=true"],
        ["exgrpo.policy=masked", "exgrpo.dynamic_sampling=true"],
        ["method=dapo"],
        ["exgrpo.loss.denominator=mixed"],
    ],
    ids=str,
)
def test_good_configurations_pass(configure, overrides):
    check(configure(*overrides))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("trainer.v1.trainer_mode=sync", "trainer.v1.trainer_mode"),
        ("trainer.v1.trainer_mode=colocate_async", "trainer.v1.trainer_mode"),
        ("trainer.v1.trainer_mode=separate_async", "trainer.v1.trainer_mode"),
        ("trainer.use_v1=false", "trainer.use_v1"),
        ("actor_rollout_ref.rollout.n=1", "actor_rollout_ref.rollout.n"),
        ("algorithm.use_kl_in_reward=true", "algorithm.use_kl_in_reward"),
        ("algorithm.filter_groups.enable=true", "algorithm.filter_groups.enable"),
        ("exgrpo.dynamic_sampling=true", "exgrpo.dynamic_sampling"),
        ("exgrpo.loss.denominator=some", "exgrpo.loss.denominator"),
        ("algorithm.rollout_correction.bypass_mode=true", "algorithm.rollout_correction.bypass_mode"),
        ("data.gen_batch_size=128", "data.gen_batch_size"),
        ("data.gen_batch_size=null", "data.gen_batch_size"),
        ("critic.enable=true", "critic.enable"),
        (
            "actor_rollout_ref.rollout.enable_rollout_routing_replay=true",
            "actor_rollout_ref.rollout.enable_rollout_routing_replay",
        ),
        ("actor_rollout_ref.actor.loss_scale_factor=4096", "actor_rollout_ref.actor.loss_scale_factor"),
        ("actor_rollout_ref.actor.loss_scale_factor=null", "actor_rollout_ref.actor.loss_scale_factor"),
        ("data.train_batch_size=96", "data.train_batch_size"),
        ("exgrpo.rho=1.5", "exgrpo.rho"),
        ("exgrpo.loss.beta=0", "exgrpo.loss.beta"),
        ("exgrpo.lose.beta=0.2", "exgrpo.lose"),
        ("exgrpo.buffer.max_bytes=1e9", "exgrpo.buffer.max_bytes"),
        ("exgrpo.question.mu=.nan", "exgrpo.question.mu"),
    ],
)
def test_each_refusal_is_one_sentence_naming_its_key(configure, override, key):
    message = refused(configure(override))
    assert message.startswith(key)
    assert message.endswith(".")
    assert "\n" not in message


# ---- data


def check_rows(configure, tmp_path, rows, split="train_files") -> str:
    overrides = {"train_files": write(tmp_path / "good.parquet", [row(0)])}
    overrides["val_files"] = overrides["train_files"]
    overrides[split] = write(tmp_path / "bad.parquet", rows)
    return refused(configure(*(f"data.{name}={path}" for name, path in overrides.items())))


@pytest.mark.parametrize("split", ["train_files", "val_files"])
@pytest.mark.parametrize("column", ["data_source", "prompt", "reward_model", "extra_info"])
def test_missing_columns_are_named(configure, tmp_path, column, split):
    rows = [{name: value for name, value in row(0).items() if name != column}]
    message = check_rows(configure, tmp_path, rows, split)
    assert message.startswith(f"data.{split}: ")
    assert "bad.parquet" in message
    assert repr(column) in message


@pytest.mark.parametrize("column", ["images", "videos", "audios"])
def test_multimodal_columns_are_refused(configure, tmp_path, column):
    message = check_rows(configure, tmp_path, [row(0) | {column: ["a.png"]}])
    assert "data.train_files" in message
    assert f"{column!r} holds multimodal data" in message


def test_duplicate_ids_are_refused_within_a_file_and_across_files(configure, tmp_path):
    assert "'id1' occurs in rows 1 and 2" in check_rows(configure, tmp_path, [row(0), row(1), row(1)])
    first, second = (write(tmp_path / f"{i}.parquet", [row(i), row(9)]) for i in range(2))
    message = refused(configure(f"data.train_files=[{first},{second}]", f"data.val_files={first}"))
    assert message.startswith("data.train_files: question id 'id9' occurs in rows 1 and 3")


def test_rows_without_any_id_are_refused(configure, tmp_path):
    rows = [row(0) | {"extra_info": {"split": "train"}}]
    assert "extra_info.question_id" in check_rows(configure, tmp_path, rows)


@pytest.mark.parametrize("split", ["train_files", "val_files"])
@pytest.mark.parametrize("content", [None, b"not parquet", b""])
def test_files_that_cannot_be_read_are_named(configure, tmp_path, split, content):
    path = tmp_path / "x.parquet"
    if content is not None:
        path.write_bytes(content)
    message = refused(configure(f"data.{split}={path}"))
    assert message.startswith(f"data.{split}: ")
    assert str(path) in message


@pytest.mark.parametrize("split", ["train_files", "val_files"])
@pytest.mark.parametrize("value", ["null", "[]"])
def test_no_files_at_all_are_refused(configure, split, value):
    assert refused(configure(f"data.{split}={value}")).startswith(f"data.{split} ")
