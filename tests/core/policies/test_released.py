"""What `profile=released` changes in bookkeeping (the loss: tests/trainer/test_released_scale.py)."""

import pytest

from recipe.exgrpo.core.buffer import Response
from recipe.exgrpo.core.config import BookkeepingConfig, ExGRPOConfig
from recipe.exgrpo.core.policies import make_policy
from recipe.exgrpo.core.policies.policy import Group, Tools
from recipe.exgrpo.presets.variants import preset_settings

K = 4
TOOLS = Tools(
    score=None,
    read=lambda members: [Response([i, j], [-1.0, -1.0]) for i, j in members],
    entropies=None,
)
GROUPS = [Group("solved", [1.0] * K), Group("partly", [1.0, 0.0, 0.0, 0.0]), Group("lost one", [1.0] * (K - 1))]


@pytest.mark.parametrize(("from_start", "retired"), [(True, ["solved"]), (False, [])])
def test_solved_questions_retire_before_replay_has_started(from_start, retired):
    books = BookkeepingConfig(retire_from_start=from_start)
    policy = make_policy(ExGRPOConfig(bookkeeping=books, start_threshold=0.9), K)
    policy.finish(GROUPS, TOOLS, 1, 0.3)
    assert not policy.active
    assert policy.store.retired == retired
    assert policy.metrics(1)["newly_retired"] == len(retired)
    assert policy.metrics(1)["buffer_trajectories"] == 0  # nothing is collected yet


def test_once_replay_is_on_a_question_retires_once():
    policy = make_policy(ExGRPOConfig(bookkeeping=BookkeepingConfig(retire_from_start=True), start_threshold=None), K)
    policy.finish(GROUPS, TOOLS, 1, 0.3)
    assert policy.store.retired == ["solved"]
    assert policy.metrics(1)["newly_retired"] == 1


def test_the_profile_asks_for_it():
    released = preset_settings("profile", "released")
    assert released["bookkeeping"] == {"keep_unsolved": True, "retire_from_start": True}
    assert released["loss"] == {"fresh_clip": "before_replay", "scale": "released"}
