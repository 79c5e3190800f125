"""What stored trajectories answer: the prompt ids of a question as the rollout makes them, template and temperature."""

import hashlib
import json
from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from recipe.exgrpo.checkpoint.resume import Current
from recipe.exgrpo.core.buffer import prompt_hash


def current_answers(
    config: DictConfig, tokenizer, model_type: str, dataset: Sequence[dict], rows: Mapping[str, int]
) -> Current:
    """What this run's rollouts answer: chat template (its keyword arguments included), temperature, and prompt ids.

    Prompt ids are made by the builder that verl's agent loop makes them with: one tokenisation per call, asked on resume only,
    for questions with stored trajectories.
    """
    arguments = _template_arguments(config)
    template = json.dumps([tokenizer.chat_template, arguments], sort_keys=True)
    builder = create_continuous_token_builder(tokenizer, hf_model_type=model_type, chat_template_kwargs=arguments)
    return Current(
        chat_template=hashlib.sha256(template.encode()).hexdigest(),
        temperature=float(config.actor_rollout_ref.rollout.temperature),
        max_response_length=config.data.max_response_length,
        prompt_hash=lambda question: prompt_hash(
            builder.build_initial_tokens(list(dataset[rows[question]]["raw_prompt"]))
        ),
    )


def _template_arguments(config: DictConfig) -> dict:
    found = config.data.get("apply_chat_template_kwargs")
    return OmegaConf.to_container(found, resolve=True) if found else {}
