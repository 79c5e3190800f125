"""Checks that need the tokenizer: vocabulary, prompt template, prompt lengths. Skipped while its folder is not here."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from recipe.exgrpo.checks.data import column
from recipe.exgrpo.checks.findings import Finding, error, warning
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.checks.shapes import is_missing
from recipe.exgrpo.experience.target import template_arguments

SAMPLE = 200  # prompts looked at in each file; all of them would take a minute
TEMPLATES = Path(__file__).resolve().parents[3] / "data" / "templates"


def tokenizer_findings(run: Run, readable: bool) -> Iterator[Finding]:
    """What is wrong with the tokenizer, alone and, where the parquet files are `readable`, with the prompts of both splits."""
    folder = run.tokenizer_folder
    if folder is None:
        yield from _missing_findings(run)
        return
    tokenizer = _load(folder)
    if isinstance(tokenizer, Finding):
        yield tokenizer
        return
    tokenizer.chat_template = run.config.actor_rollout_ref.model.custom_chat_template or tokenizer.chat_template
    yield from _vocabulary_findings(run, tokenizer)
    if not tokenizer.chat_template:
        yield error(f"{run.tokenizer_key}: {folder} has no chat template{_remedy(run)}")
    elif readable:
        yield from _prompt_findings(run, tokenizer, folder)


def _prompt_findings(run: Run, tokenizer: Any, folder: Path) -> Iterator[Finding]:
    for split, files in run.files.items():
        prompts = [prompt for path in files for prompt in islice(column(path, run.config.data.prompt_key), SAMPLE)]
        try:
            texts = _rendered(run, tokenizer, prompts)
        except TemplateError as problem:
            yield error(
                f"{run.tokenizer_key}: the chat template of {folder} cannot write the prompts of data.{split} "
                f"({problem}){_remedy(run)}"
            )
            return
        if split == "train_files":
            yield from _template_findings(run, tokenizer, prompts, texts)
        yield from _length_findings(run, split, tokenizer, texts)


def _rendered(run: Run, tokenizer: Any, prompts: list) -> list[str]:
    """The prompts as verl's agent loop writes them."""
    arguments = template_arguments(run.config) | {"add_generation_prompt": True, "tokenize": False}
    return [tokenizer.apply_chat_template(prompt, **arguments) for prompt in prompts]


def _remedy(run: Run) -> str:
    return (
        f"; make one with data/prepare_tokenizer.py --model {run.model} --template {run.template or 'NAME'} and "
        "set actor_rollout_ref.model.tokenizer_path."
    )


def _missing_findings(run: Run) -> Iterator[Finding]:
    """A tokenizer folder that was named but never made is an error; a hub id may be downloaded later."""
    path = run.config.actor_rollout_ref.model.tokenizer_path
    if path and is_missing(path):
        yield error(f"actor_rollout_ref.model.tokenizer_path: the folder {path} does not exist{_remedy(run)}")


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


def _vocabulary_findings(run: Run, tokenizer: Any) -> Iterator[Finding]:
    if run.shape is not None and len(tokenizer) > run.shape.vocab:
        yield error(
            f"{run.tokenizer_key}: the tokenizer has {len(tokenizer)} tokens, the model embeds {run.shape.vocab}; use the "
            "model's own tokenizer."
        )


def _template_findings(run: Run, tokenizer: Any, prompts: list, texts: list[str]) -> Iterator[Finding]:
    """The rendered prompt must look as preset.template says (data/templates)."""
    name = run.template
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
            f"{run.tokenizer_key}: template {name!r} opens the answer with {opening!r}, this chat template ends with "
            f"{rendered[-20:]!r}{_remedy(run)}"
        )
    plain = (tokenizer.bos_token or "") + "".join(message["content"] for message in prompts[0])
    if template.get("raw") and rendered != plain:
        yield error(
            f"{run.tokenizer_key}: template {name!r} is plain text, this chat template adds a chat format{_remedy(run)}"
        )


def _template(name: str) -> dict | None:
    import yaml

    path = TEMPLATES / f"{name}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None


def _length_findings(run: Run, split: str, tokenizer: Any, texts: list[str]) -> Iterator[Finding]:
    """verl filters both splits alike; what it keeps of an overlong prompt, whatever data.truncation says, is its end."""
    limit = run.prompt_tokens
    over = sum(len(ids) > limit for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else 0
    if not over:
        return
    text = f"data.max_prompt_length is {limit} and {over} of the first {len(texts)} prompts of data.{split} are longer"
    if over == len(texts):
        yield error(f"{text}; raise it.")
    elif not run.config.data.filter_overlong_prompts:
        yield error(
            f"{text}, which verl would cut at their beginning; raise it, or leave them out with "
            "data.filter_overlong_prompts=true."
        )
    else:
        yield warning(f"{text}; verl leaves them out (data.filter_overlong_prompts).")
