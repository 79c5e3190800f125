"""The facts of a run that several checks need, each worked out once."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipe.exgrpo.checks.findings import PreflightError
from recipe.exgrpo.checks.shapes import ModelShape, local_folder, model_shape
from recipe.exgrpo.core.config import ExGRPOConfig
from verl_ext.dataset import SPLITS, paths_of


@dataclass(frozen=True)
class Run:
    """A run as configured, its values of the right types (`type_findings`).

    Attributes:
        config: everything; a check reads there what it alone needs.
        settings: the `exgrpo` node.
        folder: `trainer.default_local_dir`.
        files: split (`train_files`, `val_files`) -> parquet files; empty where the key is not set.
        template: the prompt template that the preset asks for; None if it asks for none.
        model: folder or hub id.
        shape: sizes of the model; None if they are not known here.
        tokenizer_key: the key that names the tokenizer; `tokenizer_folder`: where it is, None if not on this machine.
        gpus: of the trainer, on all nodes; `shards`: ranks over which FSDP spreads weights, gradients and optimizer states.
        tensor_parallel: GPUs of one replica of the rollout; `sequence_parallel`: GPUs that share a sequence in the update.
        group_size: K; `questions`: per step; `steps`: 0 if the run does not say.
        prompt_tokens, response_tokens: the limits; `longest`: tokens of the longest sequence that a rollout can return.
        token_budget: tokens of a micro-batch of the update on each GPU.
        imported: host bytes of experience from elsewhere, as far as the checks have looked at it.
    """

    config: DictConfig
    settings: ExGRPOConfig
    folder: Path
    files: dict[str, list[str]]
    template: str | None
    model: str
    shape: ModelShape | None
    tokenizer_key: str
    tokenizer_folder: Path | None
    gpus: int
    shards: int
    tensor_parallel: int
    sequence_parallel: int
    group_size: int
    questions: int
    steps: int
    prompt_tokens: int
    response_tokens: int
    longest: int
    token_budget: int
    imported: int = 0

    @classmethod
    def of(cls, config: DictConfig) -> "Run":
        """The facts of `config`. Raises PreflightError when its `exgrpo` node is not valid."""
        model, actor, rollout = (config.actor_rollout_ref[name] for name in ("model", "actor", "rollout"))
        gpus, fsdp_size = config.trainer.nnodes * config.trainer.n_gpus_per_node, actor.fsdp_config.fsdp_size
        longest = config.data.max_prompt_length + config.data.max_response_length
        return cls(
            config=config,
            settings=settings_of(config),
            folder=Path(config.trainer.default_local_dir),
            files={split: _files(config, split) for split in SPLITS},
            template=config.get("preset", {}).get("template"),
            model=model.path,
            shape=model_shape(model.path),
            tokenizer_key=f"actor_rollout_ref.model.{'tokenizer_path' if model.tokenizer_path else 'path'}",
            tokenizer_folder=local_folder(model.tokenizer_path or model.path),
            gpus=gpus,
            shards=gpus if fsdp_size is None or fsdp_size <= 0 else min(fsdp_size, gpus),
            tensor_parallel=rollout.tensor_model_parallel_size,
            sequence_parallel=actor.ulysses_sequence_parallel_size,
            group_size=rollout.n,
            questions=config.data.train_batch_size,
            steps=config.trainer.total_training_steps or 0,
            prompt_tokens=config.data.max_prompt_length,
            response_tokens=config.data.max_response_length,
            longest=min(longest, rollout.max_model_len) if rollout.max_model_len else longest,
            token_budget=actor.ppo_max_token_len_per_gpu,
        )

    @property
    def actor(self) -> DictConfig:
        return self.config.actor_rollout_ref.actor

    @property
    def rollout(self) -> DictConfig:
        return self.config.actor_rollout_ref.rollout

    @property
    def gpus_per_node(self) -> int:
        return self.config.trainer.n_gpus_per_node

    @property
    def data_parallel(self) -> int:
        """Groups of GPUs that train on different sequences."""
        return self.gpus // self.sequence_parallel

    @property
    def sequences(self) -> int:
        """Per step."""
        return self.questions * self.group_size


def settings_of(config: DictConfig) -> ExGRPOConfig:
    """The validated `exgrpo` node; raises PreflightError naming the key."""
    try:
        return ExGRPOConfig.from_mapping(OmegaConf.to_container(config, resolve=True)["exgrpo"])
    except (ValueError, OmegaConfBaseException) as problem:
        raise PreflightError(str(problem).splitlines()[0]) from problem


def _files(config: DictConfig, split: str) -> list[str]:
    try:
        return paths_of(config, split)
    except ValueError:
        return []
