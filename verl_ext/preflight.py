"""Refusals before anything expensive starts: each is one sentence that names the key and the remedy."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from recipe.exgrpo.config import ExGRPOConfig
from verl_ext.questions import REQUIRED_COLUMNS, index_questions


class PreflightError(ValueError):
    """The run cannot work as configured; the message says which key and what to do."""


def _select(config: DictConfig, key: str, default=None):
    return OmegaConf.select(config, key, default=default)


def _norm_problem(config: DictConfig) -> str | None:
    """The sum over a sequence must be divided by a constant: anything else depends on the micro-batch split."""
    actor = config.actor_rollout_ref.actor
    if actor.loss_agg_mode != "seq-mean-token-sum-norm" or actor.loss_scale_factor == config.data.max_response_length:
        return None
    return (
        f"actor_rollout_ref.actor.loss_scale_factor is {actor.loss_scale_factor} but data.max_response_length is "
        f"{config.data.max_response_length}; set it to ${{data.max_response_length}}."
    )


def _batch_problem(config: DictConfig) -> str | None:
    size, mini = config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size
    if size % mini:
        return (
            f"data.train_batch_size ({size}) must be a multiple of actor_rollout_ref.actor.ppo_mini_batch_size ({mini}); "
            "verl would pad every step with empty rows."
        )
    return None


def config_problems(config: DictConfig) -> Iterator[str]:
    """One sentence for everything in the configuration that ExGRPO refuses."""
    rollout = config.actor_rollout_ref.rollout
    mode = config.trainer.v1.trainer_mode
    if not config.trainer.use_v1:
        yield "trainer.use_v1 must be true: ExGRPO extends verl's V1 trainer."
    if mode != "exgrpo":
        yield f"trainer.v1.trainer_mode is {mode!r}; ExGRPO is synchronous and runs as trainer.v1.trainer_mode=exgrpo."
    if rollout.n < 2:
        yield f"actor_rollout_ref.rollout.n is {rollout.n}; a group advantage needs at least 2 rollouts a question."
    if _select(config, "algorithm.use_kl_in_reward"):
        yield (
            "algorithm.use_kl_in_reward must be false: on replayed rows it would take the policy of the past for the current "
            "one; use actor_rollout_ref.actor.use_kl_loss for a KL term."
        )
    if _select(config, "algorithm.filter_groups.enable"):
        yield "algorithm.filter_groups.enable must be false: it drops groups before the replayed trajectory joins them."
    if _select(config, "algorithm.rollout_correction.bypass_mode"):
        yield (
            "algorithm.rollout_correction.bypass_mode must be false: stored log-probs are the training engine's, "
            "and importance weights against the inference engine's would mix the two."
        )
    if _select(config, "data.gen_batch_size") != 1:
        yield "data.gen_batch_size must be 1, so that exactly B - n questions are fetched."
    if _select(config, "critic.enable"):
        yield "critic.enable must be false: the advantage is group-relative, there is no critic."
    tools = ("actor_rollout_ref.rollout.multi_turn.enable", "data.tool_config_path", "data.function_tool_path")
    yield from (f"{key} is set; ExGRPO replays single-turn text only." for key in tools if _select(config, key))
    yield from filter(None, (_norm_problem(config), _batch_problem(config)))


def schema_problems(path: str, schema: pa.Schema, media_keys: Iterable[str]) -> Iterator[str]:
    """One sentence for each missing or unsupported column of a parquet file."""
    missing = [name for name in REQUIRED_COLUMNS if name not in schema.names]
    if missing:
        yield f"{path}: column {missing[0]!r} is missing; verl's schema has {', '.join(REQUIRED_COLUMNS)}."
    for name in media_keys:
        if name in schema.names:
            yield f"{path}: column {name!r} holds multimodal data; ExGRPO replays single-turn text only."
    if "extra_info" in schema.names and pa.types.is_struct(schema.field("extra_info").type):
        nested = [field.name for field in schema.field("extra_info").type]
        if "tools_kwargs" in nested:
            yield f"{path}: extra_info.tools_kwargs asks for tools; ExGRPO replays single-turn text only."


def check_data(config: DictConfig) -> None:
    """Check the schema of every training and validation parquet, and that training question ids are unique."""
    media = [config.data.get(key) for key in ("image_key", "video_key", "audio_key")]
    for split in ("train_files", "val_files"):
        for path in _paths(config, split):
            for problem in schema_problems(path, _schema(f"data.{split}", path), [name for name in media if name]):
                raise PreflightError(f"data.{split}: {problem}")
    try:
        index_questions(_extra_infos(_paths(config, "train_files")))
    except ValueError as error:
        raise PreflightError(str(error)) from error


def _paths(config: DictConfig, split: str) -> list[str]:
    files = config.data[split]
    if not files:
        raise PreflightError(f"data.{split} is not set; name at least one parquet file.")
    return [files] if isinstance(files, str) else list(files)


def _schema(key: str, path: str) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise PreflightError(f"{key}: {path} cannot be read as parquet: {error}") from error


def _extra_infos(paths: list[str]) -> Iterator[dict | None]:
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(columns=["extra_info"]):
            yield from batch.column(0).to_pylist()


def check(config: DictConfig) -> ExGRPOConfig:
    """Raise PreflightError on the first problem; returns the validated `exgrpo` settings."""
    try:
        settings = ExGRPOConfig.from_mapping(OmegaConf.to_container(config.exgrpo, resolve=True))
    except ValueError as error:
        raise PreflightError(str(error)) from error
    for problem in config_problems(config):
        raise PreflightError(problem)
    check_data(config)
    return settings
