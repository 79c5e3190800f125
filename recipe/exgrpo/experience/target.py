"""What traces are to become part of: the questions, tokenizer, template, reward and limits of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipe.exgrpo.checkpoint.resume import model_fingerprint, template_fingerprint, tokenizer_fingerprint
from recipe.exgrpo.experience.grading import Grading
from recipe.exgrpo.experience.questions import Questions
from recipe.exgrpo.experience.rendering import Render, Renderer
from recipe.exgrpo.experience.tokenizers import load_tokenizer
from verl_ext.dataset import paths_of, rows_by_question
from verl_ext.tools import ToolSetup


@dataclass(frozen=True)
class Target:
    """A run as an import sees it.

    `tokenizer` and `chat_template` are fingerprints, `temperature` that of its rollouts; `max_prompt` and `max_response` in
    tokens; `born` is the birth step of what comes in (None: its own); `vocabulary` the number of token ids; `tools` are those
    that its prompts show.
    """

    questions: Questions
    renderer: Renderer
    grading: Grading | None
    tokenizer: str
    chat_template: str
    temperature: float
    max_prompt: int
    max_response: int
    vocabulary: int
    born: int | None = None
    tools: ToolSetup = field(default_factory=ToolSetup)

    @classmethod
    def of(
        cls,
        config: DictConfig,
        tokenizer: Any | None = None,
        render: Render | None = None,
        keep: Callable[[str], bool] = lambda question: True,
        graded: bool = True,
        **changes: Any,
    ) -> "Target":
        """That of a run configuration; `tokenizer` and `render` are the run's own where they are loaded already.

        `keep` says which questions the run trains on; without `graded` the reward function is not loaded. Raises ValueError
        naming the file or key that cannot be read.
        """
        tokenizer = run_tokenizer(config) if tokenizer is None else tokenizer
        rows = rows_by_question(map(Path, paths_of(config, "train_files")))
        arguments = template_arguments(config)
        return cls(
            questions=Questions({question: row for question, row in rows.items() if keep(question)}),
            renderer=Renderer(tokenizer, arguments, render, lambda: model_type(config)),
            grading=Grading.of(config.reward) if graded else None,
            tokenizer=tokenizer_fingerprint(tokenizer),
            chat_template=template_fingerprint(tokenizer, arguments),
            temperature=float(config.actor_rollout_ref.rollout.temperature),
            max_prompt=config.data.max_prompt_length,
            max_response=config.data.max_response_length,
            vocabulary=len(tokenizer),
            tools=ToolSetup.of(config),
            **changes,
        )


def tokenizer_path(config: DictConfig) -> str:
    """Folder or hub id of a run's tokenizer."""
    model = config.actor_rollout_ref.model
    return str(model.tokenizer_path or model.path)


def run_tokenizer(config: DictConfig) -> Any:
    """A run's tokenizer with its chat template, as verl makes it. Raises ValueError naming it."""
    tokenizer = load_tokenizer(tokenizer_path(config))
    tokenizer.chat_template = config.actor_rollout_ref.model.custom_chat_template or tokenizer.chat_template
    return tokenizer


def template_arguments(config: DictConfig) -> dict[str, Any]:
    """`data.apply_chat_template_kwargs` of a run."""
    found = config.data.get("apply_chat_template_kwargs")
    return OmegaConf.to_container(found, resolve=True) if found else {}


def model_type(config: DictConfig) -> str | None:
    """`model_type` of a run's model; None where its config.json is not on this machine."""
    found = _model_config(config)
    return None if found is None else found.model_type


def _model_config(config: DictConfig) -> Any | None:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(config.actor_rollout_ref.model.path), trust_remote_code=False)
    except (OSError, ValueError):
        return None


def run_fingerprint(config: DictConfig, target: Target, policy: str) -> Mapping[str, Any]:
    """What a state made for this run says about itself, as `checkpoint.experience_state` has it of the run's own."""
    found = _model_config(config)
    return {
        # A hub id that is not on this machine stands for itself.
        "model": str(config.actor_rollout_ref.model.path) if found is None else model_fingerprint(found),
        "tokenizer": target.tokenizer,
        "group_size": config.actor_rollout_ref.rollout.n,
        "policy": policy,
    }
