"""What stored trajectories answer: the prompt ids of a question as the rollout makes them, template and temperature."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

from omegaconf import DictConfig, OmegaConf
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from recipe.exgrpo.core.buffer import Origin, prompt_hash


def origin_of(config: DictConfig, tokenizer) -> Origin:
    """What this run's rollouts are stamped with: chat template (its keyword arguments included) and sampling temperature."""
    about = [tokenizer.chat_template, _template_arguments(config)]
    template = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return Origin("rollout", template, float(config.actor_rollout_ref.rollout.temperature))


def prompt_hashes(
    config: DictConfig, tokenizer, model_type: str, dataset: Sequence[dict], rows: Mapping[str, int]
) -> Callable[[str], int]:
    """question -> hash of its prompt ids, made by the builder that verl's agent loop makes them with.

    Costs one tokenisation per call; asked on resume only, for questions with stored trajectories.
    """
    builder = create_continuous_token_builder(
        tokenizer, hf_model_type=model_type, chat_template_kwargs=_template_arguments(config)
    )
    return lambda question: prompt_hash(builder.build_initial_tokens(list(dataset[rows[question]]["raw_prompt"])))


def _template_arguments(config: DictConfig) -> dict:
    found = config.data.get("apply_chat_template_kwargs")
    return OmegaConf.to_container(found, resolve=True) if found else {}
