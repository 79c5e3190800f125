"""Base models of graded strength: clean demonstrations first, so that the model can do the task, then faulty ones.

The faults, not a lack of skill, determine the pass rate, so reinforcement learning can raise it within a hundred steps. Models
are cached as safetensors under a key of everything that they depend on.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from recipe.exgrpo.lab.families import Family, Faults, family
from recipe.exgrpo.lab.files import content_key
from recipe.exgrpo.lab.model import ModelShape, TinyTransformer, prompt_ids, response_ids, response_scores
from recipe.exgrpo.lab.questions import Splits, make_splits
from recipe.exgrpo.lab.turns import turns_of
from recipe.exgrpo.lab.vocabulary import EOS, PAD, Vocabulary
from verl_ext.files import write_atomically

logger = logging.getLogger(__name__)

RECIPE_VERSION = 1  # increase it when a change of code changes the models


@dataclass(frozen=True)
class Grade:
    """The faults in a base's demonstrations: of short questions, and of long ones."""

    short: Faults
    long: Faults

    def faults(self, is_long: bool) -> Faults:
        return self.long if is_long else self.short


def _alike(faults: Faults) -> Grade:
    return Grade(faults, faults)


CLEAN = _alike(Faults())
BIMODAL = Grade(Faults(easy=0.01, hard=0.03), Faults(easy=0.2, hard=0.85, stop=0.2))

# Pass rates on training questions: weak about 0.1, mid 0.2 to 0.3; bimodal solves short questions and hardly any long one.
GRADES = {
    "chain": {
        "weak": _alike(Faults(easy=0.15, hard=0.6, stop=0.3)),
        "mid": _alike(Faults(easy=0.05, hard=0.45, stop=0.05)),
        "bimodal": BIMODAL,
    },
    "addition": {
        "weak": _alike(Faults(easy=0.3, hard=0.8, stop=0.1)),
        "mid": _alike(Faults(easy=0.15, hard=0.7, stop=0.0)),
        "bimodal": BIMODAL,
    },
    "ways": {
        "weak": _alike(Faults(easy=0.1, hard=0.8, stop=0.25)),
        "mid": _alike(Faults(easy=0.05, hard=0.6, stop=0.05)),
        "bimodal": BIMODAL,
    },
    "tool": {
        "weak": _alike(Faults(easy=0.6, hard=0.8, stop=0.3)),
        "mid": _alike(Faults(easy=0.35, hard=0.6, stop=0.2)),
        "bimodal": BIMODAL,
    },
}


@dataclass(frozen=True)
class BaseRecipe:
    """How a base is trained: `batch_size` new questions per step; `seed` is the base seed."""

    clean_steps: int = 1200
    faulty_steps: int = 200
    batch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("clean_steps", "faulty_steps", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"BaseRecipe.{name} must be positive; got {getattr(self, name)}.")


def grade_of(family_name: str, grade: str) -> Grade:
    """The grade by its name; ValueError listing the existing ones."""
    grades = GRADES[family_name]
    if grade not in grades:
        raise ValueError(f"no base is called {grade!r}; {family_name} has {', '.join(grades)}.")
    return grades[grade]


def shape_of(task: Family, vocabulary: Vocabulary) -> ModelShape:
    return ModelShape(len(vocabulary), task.prompt_tokens + 1, task.response_tokens)


def base_path(cache: Path, family_name: str, grade: str, recipe: BaseRecipe) -> Path:
    """The file of the cached base; `clean` is the common first stage of all grades."""
    task = family(family_name)
    demonstrations = CLEAN if grade == "clean" else grade_of(family_name, grade)
    recipe = replace(recipe, faulty_steps=1) if grade == "clean" else recipe
    shape = shape_of(task, Vocabulary(task.pieces))
    key = content_key(RECIPE_VERSION, family_name, demonstrations, recipe, shape, Splits())
    return cache / f"{family_name}-{grade}-{recipe.seed}-{key}.safetensors"


def load_base(path: Path, task: Family) -> TinyTransformer:
    """The model saved at `path`."""
    model = TinyTransformer(shape_of(task, Vocabulary(task.pieces)))
    model.load_state_dict(safetensors.torch.load(path.read_bytes()))
    return model


def ensure_base(cache: Path, family_name: str, grade: str, recipe: BaseRecipe) -> Path:
    """Path of the base model, which is trained first when it is not cached (minutes on one core)."""
    path = base_path(cache, family_name, grade, recipe)
    if path.exists():
        return path
    task, steps = family(family_name), recipe.clean_steps if grade == "clean" else recipe.faulty_steps
    if grade == "clean":
        torch.manual_seed(recipe.seed)
        model, demonstrations = TinyTransformer(shape_of(task, Vocabulary(task.pieces))), CLEAN
    else:
        model = load_base(ensure_base(cache, family_name, "clean", recipe), task)
        demonstrations = grade_of(family_name, grade)
    logger.info("training base %s", path.name)
    demonstrate(model, task, demonstrations, recipe, steps)
    write_atomically(path, safetensors.torch.save(model.state_dict()))
    return path


def demonstrate(model: TinyTransformer, task: Family, grade: Grade, recipe: BaseRecipe, steps: int) -> None:
    """Train `model` in place, supervised, on `steps` batches of demonstrations of questions outside the splits."""
    rng = np.random.default_rng([recipe.seed, grade != CLEAN])
    splits, vocabulary = make_splits(task, Splits()), Vocabulary(task.pieces)
    kept_out = frozenset(question for part in splits for question in part)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        questions = task.questions(recipe.batch_size, rng, kept_out)
        loss = demonstration_loss(model, task, vocabulary, questions, grade, rng)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def demonstration_loss(
    model: TinyTransformer,
    task: Family,
    vocabulary: Vocabulary,
    questions: list,
    grade: Grade,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Mean cross entropy per token, nats, scalar, of one demonstration per question: of the tokens that a model would write."""
    prompts = prompt_ids([vocabulary.encode(task.prompt(q)) for q in questions], model.shape.prompt)
    texts = [task.demonstration(q, grade.faults(task.is_long(q)), rng) for q in questions]
    encoded, turns = [[*vocabulary.encode(text), EOS] for text in texts], turns_of(task, vocabulary)
    responses = response_ids(encoded)
    learnt = responses != PAD
    if turns is not None:
        for row, ids in zip(learnt, encoded, strict=True):
            row[: len(ids)] = torch.from_numpy(turns.own(ids))
    log_probs, _ = response_scores(model, prompts, responses)
    return -log_probs[learnt].mean()
