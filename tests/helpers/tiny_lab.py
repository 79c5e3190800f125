"""The laboratory on a task of a few tokens, quick enough for a test to train in."""

import dataclasses
from functools import cache

import numpy as np
import torch

from recipe.exgrpo.lab.bases import CLEAN, demonstration_loss, shape_of
from recipe.exgrpo.lab.model import TinyTransformer
from recipe.exgrpo.lab.suites import variant
from recipe.exgrpo.lab.trainer import Lab, LabSettings
from recipe.exgrpo.lab.vocabulary import Vocabulary

K = 4


class Parity:
    """A task of a few tokens: any letters, then the parity of five bits, which the base below guesses."""

    name = "parity"
    pieces = ("0", "1", "=", "a", "b")
    prompt_tokens, response_tokens = 6, 6

    def questions(self, n, rng, exclude=()):
        every = [f"{i:05b}" for i in range(32) if f"{i:05b}" not in exclude]
        return [every[i] for i in rng.permutation(len(every))[:n]]

    def prompt(self, question):
        return question + "="

    def is_long(self, question):
        return False

    def demonstration(self, question, faults, rng):
        return "".join(rng.choice(["a", "b"], int(rng.integers(4)))) + str(rng.integers(2))

    def grade(self, question, text):
        return text.lstrip("ab") == str(question.count("1") % 2)


SETTINGS = LabSettings(
    steps=12, questions=8, group_size=K, eval_every=3, eval_samples=1, final_samples=1, train_questions=24,
    heldout_questions=6, learning_rate=3e-3,
)  # fmt: skip


@cache
def base() -> dict:
    """Weights of a base that solves about half of its rollouts."""
    torch.manual_seed(0)
    model = TinyTransformer(shape_of(Parity(), Vocabulary(Parity.pieces)))
    optimizer, rng = torch.optim.AdamW(model.parameters(), lr=3e-3), np.random.default_rng(0)
    for _ in range(60):
        questions = Parity().questions(16, rng)
        loss = demonstration_loss(model, Parity(), Vocabulary(Parity.pieces), questions, CLEAN, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


def lab(name="exgrpo", seed=0, settings=SETTINGS, **overrides) -> Lab:
    model = TinyTransformer(shape_of(Parity(), Vocabulary(Parity.pieces)))
    model.load_state_dict(base())
    return Lab(variant(name, seed, **overrides), settings, Parity(), model, seed)


def recorded(run: Lab) -> list[list]:
    """The rows that a run hands to its updates from now on, as they are then: of groups in order, then those on top."""
    seen, update = [], run.update

    def spy(batch):
        seen.append([dataclasses.replace(row) for row in (*batch.rows, *batch.extra)])
        return update(batch)

    run.update = spy
    return seen
