"""Checks that need the tokenizer: vocabulary, prompt template, prompt lengths. Skipped while its folder is not here."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from omegaconf import DictConfig

from recipe.exgrpo.checks.data import column
from recipe.exgrpo.checks.findings import Finding, error, warning
from recipe.exgrpo.checks.model import is_missing, local_folder, model_shape
from verl_ext.dataset import paths_of

SAMPLE = 200  # prompts looked at; all of them would take a minute
TEMPLATES = Path(__file__).resolve().parents[3] / "data" / "templates"


def tokenizer_findings(config: DictConfig, readable: bool) -> Iterator[Finding]:
    """What is wrong with the tokenizer, alone and, where the parquet files are `readable`, with the training prompts."""
    model = config.actor_rollout_ref.model
    folder = local_folder(model.tokenizer_path or model.path)
    if folder is None:
        yield from _missing_findings(config)
        return
    tokenizer = _load(folder)
    if isinstance(tokenizer, Finding):
        yield tokenizer
        return
    yield from _vocabulary_findings(config, tokenizer)
    if not tokenizer.chat_template:
        yield error(f"{_key(config)}: {folder} has no chat template{_remedy(config)}")
    elif readable:
        yield from _prompt_findings(config, tokenizer, folder)


def _prompt_findings(config: DictConfig, tokenizer: Any, folder: Path) -> Iterator[Finding]:
    prompts = list(islice(column(paths_of(config, "train_files")[0], config.data.prompt_key), SAMPLE))
    try:
        texts = [
            tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False) for prompt in prompts
        ]
    except TemplateError as problem:
        yield error(
            f"{_key(config)}: the chat template of {folder} cannot write the prompts ({problem}){_remedy(config)}"
        )
        return
    yield from _template_findings(config, tokenizer, prompts, texts)
    yield from _length_findings(config, tokenizer, texts)


def _key(config: DictConfig) -> str:
    name = "tokenizer_path" if config.actor_rollout_ref.model.tokenizer_path else "path"
    return f"actor_rollout_ref.model.{name}"


def _remedy(config: DictConfig) -> str:
    template = config.get("preset", {}).get("template") or "NAME"
    return (
        f"; make one with data/prepare_tokenizer.py --model {config.actor_rollout_ref.model.path} --template {template} and "
        "set actor_rollout_ref.model.tokenizer_path."
    )


def _missing_findings(config: DictConfig) -> Iterator[Finding]:
    """A tokenizer folder that was named but never made is an error; a hub id may be downloaded later."""
    path = config.actor_rollout_ref.model.tokenizer_path
    if path and is_missing(path):
        yield error(f"actor_rollout_ref.model.tokenizer_path: the folder {path} does not exist{_remedy(config)}")


def _load(folder: Path) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError, StrictDataclassError) as problem:
        return error(
            f"actor_rollout_ref.model.tokenizer_path: {folder} cannot be loaded: {str(problem).splitlines()[0]}"
        )
    if tokenizer("0", add_special_tokens=False)["input_ids"]:
        return tokenizer
    return error(f"actor_rollout_ref.model.tokenizer_path: {folder} has no vocabulary; download its tokenizer.json.")


def _vocabulary_findings(config: DictConfig, tokenizer: Any) -> Iterator[Finding]:
    shape = model_shape(config.actor_rollout_ref.model.path)
    if shape is not None and len(tokenizer) > shape.vocab:
        yield error(
            f"{_key(config)}: the tokenizer has {len(tokenizer)} tokens, the model embeds {shape.vocab}; use the model's own "
            "tokenizer."
        )


def _template_findings(config: DictConfig, tokenizer: Any, prompts: list, texts: list[str]) -> Iterator[Finding]:
    """The rendered prompt must look as preset.template says (data/templates)."""
    name = config.get("preset", {}).get("template")
    if not name or not prompts:
        return
    template = _template(name)
    if template is None:
        yield error(f"preset.template: {name!r} is not one of data/templates.")
        return
    rendered = texts[0]
    opening = template.get("assistant_opening", "")
    if not rendered.endswith(opening):
        yield error(
            f"{_key(config)}: template {name!r} opens the answer with {opening!r}, this chat template ends with "
            f"{rendered[-20:]!r}{_remedy(config)}"
        )
    plain = (tokenizer.bos_token or "") + "".join(message["content"] for message in prompts[0])
    if template.get("raw") and rendered != plain:
        yield error(
            f"{_key(config)}: template {name!r} is plain text, this chat template adds a chat format{_remedy(config)}"
        )


def _template(name: str) -> dict | None:
    import yaml

    path = TEMPLATES / f"{name}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None


def _length_findings(config: DictConfig, tokenizer: Any, texts: list[str]) -> Iterator[Finding]:
    limit = config.data.max_prompt_length
    over = sum(len(ids) > limit for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else 0
    if not over:
        return
    text = f"data.max_prompt_length is {limit} and {over} of the first {len(texts)} prompts are longer"
    if over == len(texts) or not config.data.filter_overlong_prompts:
        yield error(f"{text}; raise it, or set data.filter_overlong_prompts=true to leave out the long ones.")
    else:
        yield warning(f"{text}; verl leaves them out (data.filter_overlong_prompts).")
