"""What is in a run folder: whole and torn checkpoints, the tracker, and what pruning leaves."""

from pathlib import Path

import pytest
import torch
from run_folders import cut, save

from recipe.exgrpo.checkpoint.checkpointer import ExperienceCheckpointer
from recipe.exgrpo.core.buffer import ExperienceBuffer
from recipe.exgrpo.core.buffer.records import Response
from recipe.exgrpo.runs.folder import (
    TRACKER,
    Checkpoint,
    TrackerError,
    checkpoints,
    followed,
    newest_whole,
    prune,
    tracked_step,
)


def test_a_whole_checkpoint_has_every_file_of_every_rank(tmp_path):
    found = Checkpoint(save(tmp_path, 4, ranks=2))
    assert found.whole
    assert (found.step, found.ranks) == (4, 2)


@pytest.mark.parametrize(
    "file",
    [
        "actor/model_world_size_2_rank_1.pt",
        "actor/optim_world_size_2_rank_0.pt",
        "actor/extra_state_world_size_2_rank_1.pt",
        "data.pt",
    ],
)
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_missing_or_cut_file_is_named(tmp_path, file, damage):
    folder = save(tmp_path, 4, ranks=2)
    if damage == "cut":
        cut(folder / file)
    else:
        (folder / file).unlink()
    (problem,) = Checkpoint(folder).problems
    assert str(folder / file) in problem
    assert damage in problem


def test_what_torch_saves_is_whole_and_its_first_half_is_not(tmp_path):
    folder = save(tmp_path, 1)
    torch.save({"weight": torch.arange(1000.0)}, folder / "actor/model_world_size_1_rank_0.pt")
    assert Checkpoint(folder).whole
    cut(folder / "actor/model_world_size_1_rank_0.pt")
    assert not Checkpoint(folder).whole


def test_files_that_no_start_loads_may_be_missing(tmp_path):
    folder = save(tmp_path, 4)
    (folder / "actor/optim_world_size_1_rank_0.pt").unlink()
    assert Checkpoint(folder, kinds=("model", "extra_state")).whole


def test_experience_of_the_wrong_size_is_named(tmp_path):
    folder = save(tmp_path, 4)
    buffer = ExperienceBuffer(4)
    buffer.add("q", Response([1, 2, 3], [-0.1, -0.2, -0.3]), 1.0, 1)
    ExperienceCheckpointer({}).save(folder, buffer, {})
    assert Checkpoint(folder).whole
    cut(folder / "experience/rows.safetensors")
    (problem,) = Checkpoint(folder).problems
    assert "rows.safetensors" in problem


def test_the_newest_whole_one_is_not_the_torn_one(tmp_path):
    for step in (2, 4, 10):
        save(tmp_path, step)
    cut(tmp_path / "global_step_10/data.pt")
    assert [found.step for found in checkpoints(tmp_path)] == [10, 4, 2]
    assert newest_whole(tmp_path).step == 4


@pytest.mark.parametrize("text", ["", "\n", "four", "4 5", "-1"])
def test_a_tracker_that_holds_no_step_is_an_error(tmp_path, text):
    (tmp_path / TRACKER).write_text(text)
    with pytest.raises(TrackerError, match=TRACKER):
        tracked_step(tmp_path)


def test_the_tracker_is_followed_and_what_is_newer_is_listed(tmp_path):
    assert followed(tmp_path) == (None, [])
    for step in (2, 4, 6):
        save(tmp_path, step, track=step < 6)
    cut(tmp_path / "global_step_6/actor/model_world_size_1_rank_0.pt")
    named, newer = followed(tmp_path)
    assert named.step == 4
    assert [(found.step, found.whole) for found in newer] == [(6, False)]


def test_pruning_keeps_the_newest_whole_ones_and_what_is_not_ours(tmp_path):
    for step in (1, 2, 3, 4, 5, 9):
        save(tmp_path, step)
    cut(tmp_path / "global_step_4/data.pt")
    (tmp_path / "global_step_2/merged").mkdir()
    gone = prune(tmp_path, keep=2, step=5)
    assert sorted(path.name for path in gone) == [f"global_step_{step}" for step in (1, 2, 4)]
    assert sorted(path.name for path in tmp_path.glob("global_step_*")) == [
        f"global_step_{step}" for step in (2, 3, 5, 9)
    ]
    assert [path.name for path in (tmp_path / "global_step_2").iterdir()] == ["merged"]


def test_of_a_checkpoint_that_was_moved_and_linked_to_the_link_goes(tmp_path):
    """Whole, or its weights alone, on another disk: a save must not end in shutil's refusal of links."""
    root, disk = tmp_path / "run", tmp_path / "disk"
    disk.mkdir()
    for step in (2, 4, 6):
        save(root, step)
    for name in ("global_step_2", "global_step_4/actor"):
        (root / name).rename(disk / Path(name).name)
        (root / name).symlink_to(disk / Path(name).name)
    assert [found.step for found in checkpoints(root) if found.whole] == [6, 4, 2]
    assert len(prune(root, keep=1, step=6)) == 2
    assert [path.name for path in sorted(root.glob("global_step_*"))] == ["global_step_6"]
    assert Checkpoint(disk / "global_step_2").whole
    assert (disk / "actor/model_world_size_1_rank_0.pt").is_file()


@pytest.mark.parametrize(
    "name", ["global_step_04", "global_step_４", "Global_Step_4", "global_step_4.bak", "global_step_"]
)
def test_a_name_that_verl_would_not_look_for_is_no_checkpoint(tmp_path, name):
    """verl writes the number of its tracker file behind global_step_, and starts anew without such a folder."""
    save(tmp_path, 4).rename(tmp_path / name)
    assert checkpoints(tmp_path) == []
    assert followed(tmp_path) == (None, [])


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"{}", b"\xff"])
def test_a_damaged_record_of_the_data_is_named(tmp_path, content):
    folder = save(tmp_path, 4)
    (folder / "data.json").write_bytes(content)
    assert Checkpoint(folder).problems == (f"{folder / 'data.json'} is damaged",)
    (folder / "data.json").write_text('{"sha256": [], "rows": 3}')
    assert Checkpoint(folder).whole


def test_what_was_just_saved_stays_even_if_it_looks_torn(tmp_path):
    save(tmp_path, 1)
    cut(save(tmp_path, 2) / "data.pt")
    assert prune(tmp_path, keep=1, step=2) == []
