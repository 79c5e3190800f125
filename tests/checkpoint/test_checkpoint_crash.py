"""Saving experience under `kill -9`, on a full disk, and against a file size limit: the old state or the new, never a third."""

import os
import resource
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from recipe.exgrpo.checkpoint.checkpointer import ExperienceCheckpointer
from recipe.exgrpo.checkpoint.errors import MissingState, UnsavedState
from recipe.exgrpo.checkpoint.stored import newest_intact, problems_of
from recipe.exgrpo.core.buffer import ExperienceBuffer, Provenance, Response

K = 4
PRINT = {"model": "m", "tokenizer": "t", "group_size": K, "policy": "p"}
KILLS = 200

pytestmark = pytest.mark.slow


def advance(buffer: ExperienceBuffer, version: int) -> None:
    """From version - 1 to version: new trajectories, changed counts, retirement (so that segments die and are compacted)."""
    group = buffer.new_group()
    for i in range(3):
        ids = np.random.default_rng([version, i]).integers(0, 99, 40)
        response = Response(ids, -ids / 10, mask=ids % 5 > 0, prompt_ids=ids[:9])
        where = Provenance(group, successes=3, size=K, advantage=0.25)
        buffer.add(f"q{version % 20}", response, 1.0, version, provenance=where, keep_prompt=i == 0)
    buffer.record(f"q{version % 20}", version % K)
    buffer.retire(f"q{(version + 10) % 20}")
    buffer.unretire(f"q{(version + 10) % 20}")


def digest(buffer: ExperienceBuffer) -> bytes:
    arrays, meta = buffer.state()
    return b"".join(arrays[name].tobytes() for name in sorted(arrays)) + repr(meta).encode()


def save_until_killed(root: Path, version: int, replace: bool, report) -> None:
    checkpointer, buffer = ExperienceCheckpointer(PRINT), ExperienceBuffer(K)
    if version:
        buffer, _ = checkpointer.load(newest(root))
    while True:
        version += 1
        advance(buffer, version)
        report.send(("begun", version))
        checkpointer.save(root / f"global_step_{1 if replace else version}", buffer, {"version": version})
        if not replace:
            checkpointer.prune(root, [root / f"global_step_{v}" for v in (version, version - 1)])
        report.send(("done", version))


def newest(root: Path) -> Path | None:
    """The newest step with experience; what is there must be intact."""
    found, problems = newest_intact(root)
    for errors in problems.values():
        assert [type(error) for error in errors] == [MissingState], errors
        assert "there is no experience state" in errors[0].reason
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("replace", [True, False], ids=["same step", "new steps"])
def test_kill_leaves_the_old_state_or_the_new(tmp_path, replace):
    """Half of the kills for each way of saving; each process goes on from what the one before it left."""
    context, rng, mid_save, version, expected = get_context("fork"), np.random.default_rng(0), 0, 0, {}
    reference = ExperienceBuffer(K)
    for _ in range(KILLS // 2):
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=save_until_killed, args=(tmp_path, version, replace, send))
        child.start()
        send.close()
        assert receive.poll(60)
        time.sleep(rng.uniform(0, 0.04))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        begun, done = version, version
        while True:
            try:
                event, number = receive.recv()
            except EOFError:
                break
            begun, done = (number, done) if event == "begun" else (begun, number)
        mid_save += begun > done
        for v in range(len(expected) + 1, begun + 1):
            advance(reference, v)
            expected[v] = digest(reference)
        found = newest(tmp_path)
        if found is None:
            assert done == 0
            continue
        loaded, stored = ExperienceCheckpointer(PRINT).load(found)
        extra = stored.extra
        assert extra["version"] in (done, begun)
        assert digest(loaded) == expected[extra["version"]]
        version = extra["version"]
    assert mid_save > KILLS // 4


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads which file a descriptor is of from /proc")
def test_everything_is_flushed_before_the_rename_and_the_rename_after_it(tmp_path, monkeypatch):
    """A power cut cannot be made here; this is the order of system calls that survives one."""
    checkpointer, buffer, events = ExperienceCheckpointer(PRINT), ExperienceBuffer(K), []
    advance(buffer, 1)
    checkpointer.save(tmp_path / "global_step_1", buffer, {})
    advance(buffer, 2)
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    monkeypatch.setattr(Path, "rename", lambda a, b: (events.append("rename"), rename(a, b))[1])
    checkpointer.save(tmp_path / "global_step_2", buffer, {})
    new, at = tmp_path / "global_step_2/.experience.new", events.index("rename")
    written = {p.name for p in (tmp_path / "global_step_2/experience").iterdir() if p.stat().st_nlink == 1}
    assert len(written) == 4
    assert set(events[:at]) == {str(new / name) for name in written} | {str(new)}
    assert events[at - 1] == str(new)
    assert events[at + 1 :] == [str(tmp_path / "global_step_2"), str(tmp_path)]


def large(buffer: ExperienceBuffer) -> None:
    """Half a megabyte more."""
    for i in range(64):
        buffer.add(f"large{i}", Response(np.full(1000, i), -np.ones(1000)), 1.0, 1)


def save_small_then_large(root: Path, step: int) -> str:
    """Returns what the failing save said, after checking that the state before it survived and can be gone on from."""
    checkpointer, buffer = ExperienceCheckpointer(PRINT), ExperienceBuffer(K)
    advance(buffer, 1)
    checkpointer.save(root / "global_step_1", buffer, {"version": 1})
    before = digest(buffer)
    large(buffer)
    with pytest.raises(UnsavedState) as caught:
        checkpointer.save(root / f"global_step_{step}", buffer, {"version": 2})
    loaded, stored = ExperienceCheckpointer(PRINT).load(newest(root))
    assert (stored.extra, digest(loaded)) == ({"version": 1}, before)
    assert [p.name for p in root.glob("*/*")] == ["experience"]  # no half-written folder is left to fill the disk
    advance(loaded, 2)
    checkpointer.save(root / "global_step_9", loaded, {"version": 3})
    assert newest(root).name == "global_step_9"
    return str(caught.value)


@pytest.fixture
def small_disk(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", tmp_path], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("step", [1, 2])
def test_full_disk_leaves_the_old_state_and_a_clear_error(small_disk, step):
    said = save_small_then_large(small_disk, step)
    assert "experience was not saved (No space left on device)" in said
    assert f"global_step_{step}" in said


def under_file_size_limit(root: Path, step: int, report) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    report.send(save_small_then_large(root, step))


@pytest.mark.parametrize("step", [1, 2])
def test_file_size_limit_leaves_the_old_state_and_a_clear_error(tmp_path, step):
    """As on a full disk, where mounting one is not permitted."""
    context = get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=under_file_size_limit, args=(tmp_path, step, send))
    child.start()
    send.close()
    said = receive.recv()
    child.join()
    assert "experience was not saved (File too large)" in said
    assert problems_of(tmp_path / "global_step_9") == []
