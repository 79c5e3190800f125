"""The laboratory's model, vocabulary, families and bases."""

import numpy as np
import pytest
import torch

from recipe.exgrpo.lab import bases
from recipe.exgrpo.lab.bases import GRADES, BaseRecipe, base_path, ensure_base, load_base
from recipe.exgrpo.lab.families import FAMILIES, Faults, family
from recipe.exgrpo.lab.model import ModelShape, TinyTransformer, prompt_ids, response_ids, response_scores, sample
from recipe.exgrpo.lab.questions import Splits, Stream, make_splits
from recipe.exgrpo.lab.vocabulary import BOS, EOS, PAD, Vocabulary

torch.set_num_threads(1)
SHAPE = ModelShape(vocabulary=9, prompt=5, response=7, width=16, heads=2)
PROMPTS = [[3, 4, 5, 6], [7], [8, 3]]


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = TinyTransformer(SHAPE)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0)
    return made


# ---- model and sampler


def test_the_default_shape_has_about_a_tenth_of_a_million_parameters():
    parts = TinyTransformer(ModelShape(26, 18, 53)).parameters()
    assert 90_000 < sum(p.numel() for p in parts) < 120_000


def test_the_cache_gives_the_full_forward(model):
    ids, real = prompt_ids(PROMPTS, SHAPE.prompt), torch.ones(3, 9, dtype=torch.bool)
    ids = torch.cat([ids, torch.tensor([[3, 4, 5, 6]] * 3)], 1)
    real[:, :5] = ids[:, :5] != PAD
    full = model(ids, real)
    cache = model.new_cache(3)
    parts = [model(ids[:, :5], real[:, :5], cache)]
    parts += [model(ids[:, i : i + 1], real[:, : i + 1], cache, i) for i in range(5, 9)]
    torch.testing.assert_close(torch.cat(parts, 1)[:, 4:], full[:, 4:], rtol=1e-5, atol=1e-5)


def test_padding_and_neighbours_do_not_reach_a_sequence(model):
    responses = [[3, 4, EOS], [5, EOS], [6, 7, 8, 3, EOS]]
    together = response_scores(model, prompt_ids(PROMPTS, SHAPE.prompt), response_ids(responses))
    for i, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True)):
        alone = response_scores(model, prompt_ids([prompt], SHAPE.prompt), response_ids([response]))
        for both, one in zip(together, alone, strict=True):
            torch.testing.assert_close(both[i, : len(response)], one[0], rtol=1e-5, atol=1e-6)


def test_scores_are_those_of_a_token_by_token_oracle(model):
    prompt, response = [3, 4], [5, 6, EOS]
    log_probs, entropy = response_scores(model, prompt_ids([prompt], SHAPE.prompt), response_ids([response]))
    for t, token in enumerate(response):
        ids = torch.tensor([[*prompt, PAD, PAD, BOS, *response[:t]]])
        p = model.logits(model(ids, ids != PAD)[0, -1]).double().softmax(-1)
        assert float(log_probs[0, t].detach()) == pytest.approx(float(p[token].log().detach()), abs=1e-5)
        assert float(entropy[0, t].detach()) == pytest.approx(float(torch.special.entr(p).sum().detach()), abs=1e-5)


def test_samples_follow_the_models_probabilities(model):
    n = 20_000
    drawn = sample(model, prompt_ids([[3, 4]], SHAPE.prompt), [n], torch.Generator().manual_seed(0))
    assert len(drawn) == n
    pairs = {}
    for row in drawn:
        pairs[tuple(row[:2])] = pairs.get(tuple(row[:2]), 0) + 1
    for pair, count in sorted(pairs.items(), key=lambda item: -item[1])[:6]:
        log_probs, _ = response_scores(model, prompt_ids([[3, 4]], SHAPE.prompt), response_ids([pair]))
        assert count / n == pytest.approx(float(log_probs[0, : len(pair)].sum().exp()), abs=0.015)


def test_samples_end_with_their_first_eos_and_never_hold_padding(model):
    drawn = sample(model, prompt_ids(PROMPTS, SHAPE.prompt), [50, 0, 50], torch.Generator().manual_seed(1))
    assert len(drawn) == 100
    assert any(len(row) == SHAPE.response and EOS not in row for row in drawn)
    for row in drawn:
        assert EOS not in row[:-1]
        assert not {PAD, BOS} & set(row)
        assert len(row) == SHAPE.response or row[-1] == EOS


def test_samples_belong_to_their_prompts_and_to_the_generator(model):
    ids = prompt_ids(PROMPTS, SHAPE.prompt)
    one, again, other = (sample(model, ids, [2, 1, 2], torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert one == again != other
    with torch.no_grad():
        model.tokens.weight[7] *= -3  # a token of prompt 1 alone
    changed = sample(model, ids[[0, 2]], [2, 2], torch.Generator().manual_seed(0))
    assert len(changed) == 4


def test_a_prompt_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit into 4"):
        prompt_ids([[3] * 5], 5)


# ---- families


@pytest.mark.parametrize("name", FAMILIES)
def test_clean_demonstrations_are_right_and_fit(name):
    task, rng = family(name), np.random.default_rng(0)
    vocabulary = Vocabulary(task.pieces)
    questions = task.questions(300, rng)
    assert len(set(map(task.prompt, questions))) == 300
    for question in questions:
        text = task.demonstration(question, Faults(), rng)
        assert task.grade(question, text)
        assert vocabulary.decode([*vocabulary.encode(text), EOS, 5]) == text
        assert len(vocabulary.encode(task.prompt(question))) <= task.prompt_tokens
        assert len(vocabulary.encode(text)) + 1 <= task.response_tokens


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("faults", [{"easy": 0.5}, {"hard": 0.5}, {"stop": 0.5}], ids=str)
def test_every_fault_makes_some_demonstrations_wrong(name, faults):
    task, rng = family(name), np.random.default_rng(0)
    solved = [task.grade(q, task.demonstration(q, Faults(**faults), rng)) for q in task.questions(200, rng)]
    assert 0.02 < np.mean(solved) < 0.9


@pytest.mark.parametrize("name", FAMILIES)
def test_a_guess_does_not_pay(name):
    task, rng = family(name), np.random.default_rng(0)
    questions = task.questions(400, rng)
    answers = [task.demonstration(q, Faults(), rng).rpartition("\n")[2] for q in questions]
    shuffled = [answers[i] for i in rng.permutation(len(answers))]
    assert np.mean([task.grade(q, text) for q, text in zip(questions, shuffled, strict=True)]) < 0.03
    assert not any(task.grade(questions[0], text) for text in ("", "\\boxed{", "}", answers[0][7:]))


def test_addition_is_worked_column_by_column():
    task = family("addition")
    text = task.demonstration((358, 2967), Faults(), np.random.default_rng(0))
    assert text == "0+8+7=15\n1+5+6=12\n1+3+9=13\n1+0+2=03\n\\boxed{03325}"
    forgotten = task.demonstration((358, 2967), Faults(hard=1.0), np.random.default_rng(0))
    assert forgotten == "0+8+7=05\n0+5+6=01\n0+3+9=02\n0+0+2=02\n\\boxed{02215}"
    assert task.demonstration((9999, 9999), Faults(), np.random.default_rng(0)).endswith("\\boxed{19998}")


def test_a_question_of_ways_has_several_right_solutions_one_safer_than_another():
    task, rng = family("ways"), np.random.default_rng(0)
    question = next(
        q for q in task.questions(200, rng) if [op for op, _ in q.steps].count("-") == 0 and len(q.steps) == 3
    )
    solutions = {task.demonstration(question, Faults(), rng) for _ in range(200)}
    assert len(solutions) == 8  # two ways for each of three steps
    assert all(task.grade(question, text) for text in solutions)

    def right(turned: bool, **faults: float) -> float:
        """Share of right first lines among those written the one way or the other."""
        found = []
        for q in task.questions(3000, rng):
            line = task.demonstration(q, Faults(**faults), rng).split("\n")[0]
            if q.steps[0][0] != "-" and (line[1] in "+*") == turned:
                found.append(int(line[-2:]) == int(task.demonstration(q, Faults(), rng).split("\n")[0][-2:]))
        return np.mean(found)

    assert right(turned=True, hard=0.8) > right(turned=False, hard=0.8) + 0.2
    assert right(turned=True, easy=0.2) < right(turned=False, easy=0.2) - 0.2


@pytest.mark.parametrize("values", [{"easy": -0.1}, {"stop": 1.5}])
def test_faults_are_probabilities(values):
    with pytest.raises(ValueError, match=f"Faults.{next(iter(values))}"):
        Faults(**values)


def test_text_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="no pieces"):
        Vocabulary(["ab", "c"]).encode("abd")


# ---- questions


def test_splits_are_disjoint_and_always_the_same():
    task = family("chain")
    train, heldout = make_splits(task, Splits(40, 20))
    assert (len(set(train)), len(set(heldout)), len(set(train) & set(heldout))) == (40, 20, 0)
    assert make_splits(task, Splits(40, 20)) == (train, heldout)


def test_the_stream_goes_through_every_question_once_an_epoch():
    stream = Stream(list("abcdef"), np.random.default_rng(0))
    epochs = ["".join(stream.next() for _ in range(6)) for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list("abcdef")] * 3
    assert len(set(epochs)) == 3


def test_questions_to_skip_are_skipped_until_no_other_is_left():
    stream = Stream(list("abcdef"), np.random.default_rng(0))
    assert {stream.draw(lambda q: q in "abcde") for _ in range(20)} == {"f"}
    assert stream.draw(lambda q: True) in "abcdef"


# ---- bases

TINY = BaseRecipe(clean_steps=3, faulty_steps=2, batch_size=4)


def test_a_base_is_made_once_and_found_again(tmp_path, monkeypatch):
    path = ensure_base(tmp_path, "addition", "mid", TINY)
    assert len(list(tmp_path.iterdir())) == 2  # the clean stage and the base
    monkeypatch.setattr(bases, "demonstrate", None)
    assert ensure_base(tmp_path, "addition", "mid", TINY) == path
    model = load_base(path, family("addition"))
    assert model.shape.vocabulary == len(Vocabulary(family("addition").pieces))


def test_bases_are_deterministic_and_differ_by_grade_and_seed(tmp_path):
    def weights(folder, grade="mid", seed=0):
        recipe = BaseRecipe(TINY.clean_steps, TINY.faulty_steps, TINY.batch_size, seed=seed)
        return load_base(ensure_base(tmp_path / folder, "addition", grade, recipe), family("addition")).tokens.weight

    first = weights("a")
    assert torch.equal(first, weights("b"))
    assert not torch.equal(first, weights("a", grade="weak"))
    assert not torch.equal(first, weights("a", seed=1))


def test_the_key_covers_recipe_family_and_grade(tmp_path):
    recipes = [TINY, BaseRecipe(4, 2, 4), BaseRecipe(3, 3, 4), BaseRecipe(3, 2, 4, 1e-3), BaseRecipe(3, 2, 4, seed=1)]
    paths = {base_path(tmp_path, name, grade, r) for name in FAMILIES for grade in GRADES[name] for r in recipes}
    assert len(paths) == len(FAMILIES) * 3 * 5


@pytest.mark.parametrize(("call", "sentence"), [
    (lambda: family("chess"), "chain, addition"),
    (lambda: base_path(None, "chain", "strong", TINY), "weak, mid, bimodal"),
    (lambda: BaseRecipe(clean_steps=0), "BaseRecipe.clean_steps"),
    (lambda: Splits(0), "splits.train"),
    (lambda: ModelShape(9, 5, 7, width=10, heads=4), "ModelShape.width"),
])  # fmt: skip
def test_nonsense_is_refused_by_name(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
