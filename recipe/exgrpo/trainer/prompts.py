"""What stored trajectories answer: the prompt ids of a question as the rollout makes them, template and temperature."""

from collections.abc import Mapping, Sequence

from omegaconf import DictConfig
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from recipe.exgrpo.checkpoint.resume import Current, template_fingerprint
from recipe.exgrpo.core.buffer import prompt_hash
from recipe.exgrpo.experience.target import template_arguments
from verl_ext.tools import ToolSetup


def current_answers(
    config: DictConfig, tokenizer, model_type: str, dataset: Sequence[dict], rows: Mapping[str, int]
) -> Current:
    """What this run's rollouts answer: chat template (its keyword arguments included), temperature, tools, and prompt ids.

    Prompt ids are made by the builder that verl's agent loop makes them with: one tokenisation per call, asked on resume only,
    for questions with stored trajectories.
    """
    builder, tools = prompt_builder(config, tokenizer, model_type), ToolSetup.of(config)

    def ids_of(row: dict) -> list[int]:
        return builder.build_initial_tokens(list(row["raw_prompt"]), tools=tools.shown(row))

    return Current(
        chat_template=template_fingerprint(tokenizer, template_arguments(config)),
        temperature=float(config.actor_rollout_ref.rollout.temperature),
        max_response_length=config.data.max_response_length,
        prompt_hash=lambda question: prompt_hash(ids_of(dataset[rows[question]])),
        tools=tools.fingerprint,
    )


def prompt_builder(config: DictConfig, tokenizer, model_type: str):
    """verl's builder of prompt ids, as its agent loop makes it."""
    arguments = template_arguments(config)
    return create_continuous_token_builder(tokenizer, hf_model_type=model_type, chat_template_kwargs=arguments)
