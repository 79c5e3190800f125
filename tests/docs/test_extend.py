"""The Python of docs/extend.md, run: what a reader copies works."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from recipe.exgrpo.core.buffer import Response
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies import make_policy
from recipe.exgrpo.core.policies.policy import Group, Tools
from recipe.exgrpo.core.selection import Scores

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "extend.md"
K = 4


@pytest.fixture
def my_folder(tmp_path, monkeypatch):
    """The files of the document, importable."""
    blocks = re.findall(r"```python\n# my_folder/(\w+\.py)\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert [name for name, _ in blocks] == ["my_rules.py", "my_policies.py", "my_reward.py"]
    for name, code in blocks:
        (tmp_path / name).write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, _ in blocks:
        sys.modules.pop(name.removesuffix(".py"), None)


class Questions:
    """A dataset of "a", "b", ... in order."""

    def __init__(self):
        self.left = list("abcdefgh")

    def __len__(self):
        return 8

    def draw(self, skip):
        return self.left.pop(0)


def tools(lengths, nll=()):
    """Rollouts (i, j) of `lengths[j]` tokens, and stored trajectories with these likelihoods in turn."""
    return Tools(
        score=lambda stored: Scores(np.zeros(len(stored)), np.array(nll), *np.zeros((2, len(stored)))),
        read=lambda members: [
            Response(np.arange(lengths[j]) + 10 * j, -np.ones(lengths[j]), prompt_ids=[7, 8]) for _, j in members
        ],
        entropies=None,
    )


def test_the_policy_rescues_a_failed_group_and_only_while_it_may(my_folder):
    policy = make_policy(
        ExGRPOConfig(policy="my_policies:Rescue", options={"max_age_steps": 5}, start_threshold=None), K
    )
    lent = tools([3, 2, 2, 2])
    policy.plan(1, Questions())
    policy.finish([Group("a", [1.0, 0.0, 0.0, 0.0])], lent, 1, 0.25)
    assert policy.metrics(1)["added"] == 1
    for step, rescued in ((6, 1), (7, 0)):
        policy.plan(2, Questions())
        found = policy.arrange([Group("a", [0.0] * K), Group("new", [0.0] * K)], lent, step)
        assert [placed.trajectory.token_ids.tolist() for placed in found.place] == [[0, 1, 2]] * rescued
        assert list(found.leave) == [(0, K - 1)] * rescued
        assert policy.metrics(step)["replayed_rows"] == rescued


def test_its_options_are_checked(my_folder):
    with pytest.raises(ValueError, match=r"exgrpo.options.max_age is not a key; did you mean max_age_steps"):
        make_policy(ExGRPOConfig(policy="my_policies:Rescue", options={"max_age": 5}), K)


@pytest.mark.parametrize(("rule", "nll", "chosen"), [("shortest", (), 2), ("most_drifted", (1.0, 3.0, 2.0), 1)])
def test_the_rules_choose(my_folder, rule, nll, chosen):
    policy = make_policy(ExGRPOConfig(rank=f"my_rules:{rule}", start_threshold=None, rho=1.0), K)
    lent = tools([4, 3, 2, 5], nll)
    policy.plan(1, Questions())
    policy.finish([Group("a", [1.0, 1.0, 1.0, 0.0])], lent, 1, 0.75)
    policy.plan(1, Questions())
    joined = policy.inject([Group("a", [0.0] * (K - 1), planned=True)], lent, 2)
    assert joined[0][0].token_ids[0] == 10 * chosen
    assert policy.metrics(2)["candidates_scored"] == len(nll)


def test_the_reward_grades_its_source_and_leaves_the_others(my_folder):
    grade = importlib.import_module("my_reward").compute_score
    assert grade("palindromes", "Answer: abba", "abba") == {"score": 1.0, "acc": 1.0}
    assert grade("palindromes", "Answer: abab", "abba")["score"] == 0.0
    assert grade("toy_modular", r"\boxed{4}", "4")["score"] == 1.0
