"""Traces from elsewhere in the laboratory: a perfect teacher's solutions of all training questions (any `init_from`)."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from recipe.exgrpo.core.buffer import ExperienceBuffer, Origin, Response
from recipe.exgrpo.lab.families import Family, Faults
from recipe.exgrpo.lab.rows import Row
from recipe.exgrpo.lab.turns import turns_of
from recipe.exgrpo.lab.vocabulary import EOS, Vocabulary

TRIES = 4  # solutions asked for; a question may have one only
CLEAN = Faults()


def solutions(
    task: Family,
    vocabulary: Vocabulary,
    questions: Mapping[str, object],
    prompts: Mapping[str, Sequence[int]],
    seed: int,
) -> Iterator[Row]:
    """Different solutions of every question (by its text) that the verifier accepts, as rows that nobody rolled out."""
    rng, turns = np.random.default_rng([seed, TRIES]), turns_of(task, vocabulary)
    for text, question in questions.items():
        found = dict.fromkeys(task.demonstration(question, CLEAN, rng) for _ in range(TRIES))
        for solution in (one for one in found if task.grade(question, one)):
            ids = [*vocabulary.encode(solution), EOS]
            yield Row(text, prompts[text], ids, 1.0, own=None if turns is None else turns.own(ids))


def store(rows: Sequence[Row], buffer: ExperienceBuffer) -> None:
    """Put rows whose behaviour log-probs are known, or taken for 0 = log 1 where they are None, into `buffer`."""
    ours = buffer.origin
    for row in rows:
        unknown = row.behaviour is None
        buffer.origin = Origin("teacher", "", 1.0, "one" if unknown else "scored")
        log_probs = np.zeros(len(row.response), np.float32) if unknown else row.behaviour
        response = Response(row.response, log_probs, row.own, row.prompt)
        buffer.add(row.question, response, row.reward, 0, keep_prompt=True)
    buffer.origin = ours
