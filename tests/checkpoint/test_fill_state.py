"""Checkpoints of fill mode: the same next draws, and refusals that name file and reason."""

import json

import numpy as np
import pytest

from recipe.exgrpo.checkpoint.checkpointer import read_manifest
from recipe.exgrpo.checkpoint.fill_state import load_fill, save_fill
from recipe.exgrpo.checkpoint.tensors import (
    CorruptState,
    ForeignState,
    MismatchedState,
    MissingState,
    NewerState,
    UnsavedState,
)
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies.fill import Entry, FillManager, Response
from recipe.exgrpo.core.policies.replay import Group

K = 4
FINGERPRINT = {"model": "m", "tokenizer": "t", "group_size": K}


def manager(**config) -> FillManager:
    return FillManager(ExGRPOConfig.from_mapping({"mode": "fill", "start_threshold": None, "seed": 3, **config}), K)


def a_step(fill: FillManager, step: int) -> list[tuple[str, list[int]]]:
    """One step with a mixed, a solved and an unsolved group; returns what was drawn."""
    plan = fill.plan([Group(f"mixed{step}", [1.0, 0, 0, 0]), Group("b", [1.0] * K), Group("c", [0.0] * K)])
    ids = np.arange(step, step + 3)
    fresh = [Entry(f"mixed{step}", 1, np.array([step]), [Response(ids, -ids / 10)])]
    drawn = fill.exchange(fresh, 1 if step % 2 else plan.budget, step)
    fill.finish_step(step, 0.5)
    return [(filled.question, filled.response.token_ids.tolist()) for filled in drawn]


@pytest.fixture
def warm():
    fill = manager()
    for step in range(1, 9):
        a_step(fill, step)
    return fill


def test_resuming_draws_what_not_stopping_draws(tmp_path, warm):
    save_fill(tmp_path / "global_step_8", warm, FINGERPRINT)
    resumed = manager(seed=99)  # the generator is saved, not seeded again
    load_fill(tmp_path / "global_step_8", resumed, FINGERPRINT)
    drawn = [[a_step(fill, step) for step in range(9, 20)] for fill in (warm, resumed)]
    assert drawn[0] == drawn[1]
    assert any(drawn[0])
    assert resumed.metrics() == warm.metrics()


def test_an_empty_pool_and_a_delayed_start_come_back(tmp_path):
    save_fill(tmp_path / "global_step_1", manager(start_threshold=0.35), FINGERPRINT)
    resumed = manager(start_threshold=0.35)
    load_fill(tmp_path / "global_step_1", resumed, FINGERPRINT)
    assert (resumed.active, resumed.entries) == (False, [])
    save_fill(tmp_path / "global_step_2", manager(), FINGERPRINT)
    load_fill(tmp_path / "global_step_2", resumed, FINGERPRINT)
    assert resumed.active  # it never switches back


def test_saving_again_replaces_and_leaves_nothing_beside(tmp_path, warm):
    for _ in range(2):
        save_fill(tmp_path / "global_step_8", warm, FINGERPRINT)
    assert sorted(p.name for p in (tmp_path / "global_step_8").iterdir()) == ["experience"]


@pytest.mark.parametrize("name", ["entries.safetensors", "manifest.json"])
def test_a_flipped_byte_is_refused(tmp_path, warm, name):
    save_fill(tmp_path / "global_step_8", warm, FINGERPRINT)
    path = tmp_path / "global_step_8/experience" / name
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 2, len(data) // 2 + 3):
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises((CorruptState, ForeignState), match=name):
            load_fill(tmp_path / "global_step_8", manager(), FINGERPRINT)


def rewrite(path, **changes):
    from recipe.exgrpo.checkpoint.format import encoded

    manifest = json.loads(path.read_bytes())
    manifest.pop("sha256")
    path.write_bytes(encoded(manifest | changes))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"format": "other"}, ForeignState),
        ({"version": 2}, NewerState),
        ({"fingerprint": FINGERPRINT | {"model": "n"}}, MismatchedState),
        ({"state": {}}, CorruptState),
    ],
)
def test_state_that_does_not_fit_is_refused(tmp_path, warm, changes, error):
    save_fill(tmp_path / "global_step_8", warm, FINGERPRINT)
    rewrite(tmp_path / "global_step_8/experience/manifest.json", **changes)
    with pytest.raises(error):
        load_fill(tmp_path / "global_step_8", manager(), FINGERPRINT)


def test_missing_files_and_other_modes_are_named(tmp_path, warm):
    with pytest.raises(MissingState, match="global_step_8"):
        load_fill(tmp_path / "global_step_8", manager(), FINGERPRINT)
    save_fill(tmp_path / "global_step_8", warm, FINGERPRINT)
    with pytest.raises(ForeignState, match="exgrpo-experience"):
        read_manifest(tmp_path / "global_step_8/experience")
    (tmp_path / "global_step_8/experience/entries.safetensors").unlink()
    with pytest.raises(MissingState, match=r"entries\.safetensors"):
        load_fill(tmp_path / "global_step_8", manager(), FINGERPRINT)


def test_another_tokenizer_drops_the_entries_when_allowed(tmp_path, warm):
    save_fill(tmp_path / "global_step_8", warm, FINGERPRINT)
    other = FINGERPRINT | {"tokenizer": "u"}
    resumed = manager(start_threshold=0.35)
    with pytest.raises(MismatchedState, match="tokenizer"):
        load_fill(tmp_path / "global_step_8", resumed, other)
    load_fill(tmp_path / "global_step_8", resumed, other, allow=("tokenizer",))
    assert (resumed.active, resumed.entries) == (True, [])


def test_a_failed_save_keeps_what_was_there(tmp_path, warm):
    save_fill(tmp_path / "global_step_8", warm, FINGERPRINT)
    blocker = tmp_path / "global_step_9"
    blocker.write_text("a file where the folder should be")
    with pytest.raises(UnsavedState, match="global_step_9"):
        save_fill(blocker, warm, FINGERPRINT)
    load_fill(tmp_path / "global_step_8", manager(), FINGERPRINT)
