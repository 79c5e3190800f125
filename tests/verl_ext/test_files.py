"""Files and folders that appear whole or not at all."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from verl_ext.files import (
    move_durably,
    new_folder,
    next_numbered,
    numbered,
    replacing,
    sha256_of,
    sync_folder,
    write_atomically,
    write_durably,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def synced(monkeypatch):
    """What reaches the disk, in order: paths of fsync, and `old -> new` of renames."""
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(f"{a.name} -> {b.name}"), replace(a, b)))
    return events


def test_a_file_is_flushed_before_it_gets_its_name_and_the_name_after(tmp_path, synced):
    write_atomically(tmp_path / "made" / "a.txt", "ä")
    temporary = f".a.txt.{os.getpid()}.new"
    assert synced == [temporary, f"{temporary} -> a.txt", "made"]
    assert (tmp_path / "made" / "a.txt").read_bytes() == b"\xc3\xa4"


def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as new:
            new.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert (path.read_text(), names(tmp_path)) == ("old", ["a.txt"])


def test_a_folder_is_flushed_with_all_in_it_but_not_what_links_lead_to(tmp_path, synced):
    (tmp_path / "weights").write_text("far away")
    with new_folder(tmp_path / "deep" / "model") as new:
        (new / "sub").mkdir()
        (new / "sub" / "a").write_text("a")
        (new / "link").symlink_to(tmp_path / "weights")
        assert not (tmp_path / "deep" / "model").exists()
    temporary = f".model.{os.getpid()}.new"
    assert sorted(synced[:2]) == ["a", "sub"]
    assert synced[2:] == [temporary, f"{temporary} -> model", "deep"]
    assert names(tmp_path / "deep" / "model") == ["link", "sub"]


@pytest.mark.parametrize("failure", [KeyError, KeyboardInterrupt])
def test_a_folder_whose_filling_fails_leaves_nothing(tmp_path, failure):

    def fill() -> None:
        with new_folder(tmp_path / "model") as new:
            (new / "a").write_text("a")
            raise failure

    with pytest.raises(failure):
        fill()
    assert names(tmp_path) == []


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path):
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as new:
        (new / "a").write_text("new")
    assert (tmp_path / "empty" / "a").read_text() == "new"
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "empty") as new:
        (new / "a").write_text("newer")
    assert ((tmp_path / "empty" / "a").read_text(), names(tmp_path)) == ("new", ["empty"])


def test_a_number_is_that_after_the_last(tmp_path):
    assert next_numbered(tmp_path / "nowhere", "start-").name == "start-000"
    for name in ("start-002", "start-1000", "start-x", "start-10.md", "restart-2000"):
        (tmp_path / name).touch()
    assert [path.name for path in numbered(tmp_path, "start-")] == ["start-002", "start-1000"]
    assert next_numbered(tmp_path, "start-").name == "start-1001"
    assert next_numbered(tmp_path, "start-", ".md").name == "start-011.md"


def test_a_record_is_of_the_bytes_on_disk(tmp_path):
    parts = [np.arange(6, dtype="<i4").reshape(2, 3), np.empty(0, np.float32), memoryview(b"xy")]
    record = write_durably(tmp_path / "a", [b"head", b""], iter(parts))
    content = b"head" + np.arange(6, dtype="<i4").tobytes() + b"xy"
    assert (tmp_path / "a").read_bytes() == content
    assert record.as_dict() == {"bytes": 30, "sha256": hashlib.sha256(content).hexdigest()}
    assert record.sha256 == sha256_of(tmp_path / "a")


def test_a_record_is_of_a_new_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileExistsError):
        write_durably(tmp_path / "a", [b"new"])
    assert (tmp_path / "a").read_text() == "old"


def test_what_cannot_be_flushed_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        move_durably(tmp_path / "nowhere", tmp_path / "a")
