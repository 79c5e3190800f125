"""Responses with tool turns in the laboratory: the tool's tokens are put in, are never learnt, and come back masked."""

import numpy as np
import pytest
import torch
from tiny_lab import recorded

from recipe.exgrpo.lab import teacher
from recipe.exgrpo.lab.bases import CLEAN, demonstration_loss, shape_of
from recipe.exgrpo.lab.families import Calculator, Faults, family
from recipe.exgrpo.lab.model import TinyTransformer, prompt_ids, response_ids, response_scores, sample
from recipe.exgrpo.lab.rows import tensors_of
from recipe.exgrpo.lab.suites import variant
from recipe.exgrpo.lab.trainer import Lab, LabSettings
from recipe.exgrpo.lab.turns import turns_of
from recipe.exgrpo.lab.vocabulary import EOS, PAD, Vocabulary

torch.set_num_threads(1)
VOCABULARY, COLUMNS = Vocabulary(Calculator.pieces), Calculator.prompt_tokens + 1
SETTINGS = LabSettings(questions=4, group_size=2, train_questions=8, heldout_questions=8)


class Even(Calculator):
    """Solved by responses of even length, so that an untrained model has successes and failures."""

    def grade(self, question, text):
        return len(text) % 2 == 0


def model() -> TinyTransformer:
    """An untrained model, which writes every token as often: one in thirty closes a call."""
    torch.manual_seed(0)
    return TinyTransformer(shape_of(Even(), VOCABULARY))


def lab(name: str) -> Lab:
    return Lab(variant(name), SETTINGS, Even(), model(), 0)


def answered(text: str) -> str:
    """What the rules say of a response: every bracket that the model closed has its answer behind it, as far as it fits."""
    task, place, expected = Calculator(), 0, ""
    while place < len(text):
        expected += text[place]
        place += 1
        if text[place - 1] == "]":
            reply = task.reply(expected)
            expected += reply
            place += len(reply)
    return expected[: len(text)]


def test_the_sampler_puts_the_answer_behind_every_call():
    task = Calculator()
    prompts = prompt_ids(
        [VOCABULARY.encode(task.prompt(q)) for q in task.questions(8, np.random.default_rng(1))], COLUMNS
    )
    turns = turns_of(task, VOCABULARY)
    responses = sample(model(), prompts, [8] * 8, torch.Generator().manual_seed(0), turns)
    texts = [VOCABULARY.decode(response) for response in responses]
    assert sum("]" in text for text in texts) > 10
    assert all(answered(text) == text for text in texts)
    alone = sample(model(), prompts, [8] * 8, torch.Generator().manual_seed(0))
    assert not all(answered(text) == text for text in map(VOCABULARY.decode, alone))


def test_an_answer_that_does_not_fit_is_cut():
    turns = turns_of(Calculator(), VOCABULARY)
    call = VOCABULARY.encode("[9+9]")
    reply = VOCABULARY.encode("18\n")
    for room in range(7):
        out = torch.tensor([*call, *[PAD] * room])
        turns.answer(out, len(call) - 1)
        written = reply[:room]
        assert out.tolist() == [*call, *written, *[PAD] * (room - len(written))]
        assert turns.own([*call, *written]).tolist() == [True] * len(call) + [False] * len(written)


def test_own_tokens_are_those_outside_answers():
    turns = turns_of(Calculator(), VOCABULARY)
    response = [*VOCABULARY.encode("[47*62]14\n[51]error\n\\boxed{14}"), EOS]
    given = [token for token, own in zip(response, turns.own(response), strict=True) if not own]
    assert VOCABULARY.decode(given) == "14\nerror\n"
    assert turns_of(family("chain"), Vocabulary(family("chain").pieces)) is None


def test_demonstrations_teach_the_models_own_tokens_only():
    task, made = Calculator(), model()
    question = task.questions(1, np.random.default_rng(3))[0]
    text = task.demonstration(question, Faults(), np.random.default_rng(0))
    ids = [*VOCABULARY.encode(text), EOS]
    own = torch.from_numpy(turns_of(task, VOCABULARY).own(ids))
    log_probs, _ = response_scores(
        made, prompt_ids([VOCABULARY.encode(task.prompt(question))], COLUMNS), response_ids([ids])
    )
    loss = demonstration_loss(made, task, VOCABULARY, [question], CLEAN, np.random.default_rng(0))
    torch.testing.assert_close(loss, -log_probs[0, own].mean())
    assert not own.all()


@pytest.mark.parametrize("name", ["exgrpo_at_once", "refill"])
def test_stored_rows_come_back_with_the_tools_tokens_masked(name):
    run = lab(name)
    batches = recorded(run)
    for step in range(1, 5):
        run.step(step)
    rows = [row for batch in batches for row in batch]
    with_tool = [row for row in rows if run.turns.close in row.response]
    assert any(row.is_replayed for row in with_tool)
    for row in with_tool:
        np.testing.assert_array_equal(row.own, run.turns.own(row.response))
    mask = tensors_of(with_tool, COLUMNS).mask
    for row, learnt in zip(with_tool, mask, strict=True):
        assert learnt.sum() == row.own.sum() * row.in_update


def test_a_teacher_shows_what_the_tool_says_as_such():
    run = lab("exgrpo")
    rows = list(teacher.solutions(Calculator(), VOCABULARY, run.train, run.prompts, 0))
    assert {not row.own.all() for row in rows} == {True}
    for row in rows:
        np.testing.assert_array_equal(row.own, run.turns.own(row.response))


def test_the_tool_answers_any_text():
    task = Calculator()
    for text, reply in {
        "[47*62]": "14\n",
        "[1*]": "error\n",
        "]": "error\n",
        "[[9+9]": "18\n",
        "}\n]": "error\n",
    }.items():
        assert task.reply(text) == reply
