"""Experience checkpoints: round trips, incremental saving, refusals, fall-back, fingerprints."""

import ast
import hashlib
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import recipe.exgrpo.checkpoint.checkpointer
import recipe.exgrpo.checkpoint.writer
import recipe.exgrpo.core.buffer.experience
from recipe.exgrpo.checkpoint.checkpointer import (
    CorruptState,
    ExperienceCheckpointer,
    ExperienceStateError,
    ForeignState,
    MismatchedState,
    MissingState,
    NewerState,
    find_newest_intact,
    open_checkpoint,
    read_manifest,
    verify_checkpoint,
)
from recipe.exgrpo.checkpoint.format import encoded
from recipe.exgrpo.core.buffer import ExperienceBuffer, Response
from recipe.exgrpo.core.config import BufferConfig, QuestionConfig
from recipe.exgrpo.core.sampler import sample_questions

K = 4
PRINT = {"model": "qwen2-64", "tokenizer": "abc", "group_size": K}


def grow(buffer, questions, rng, step=0):
    for i in questions:
        for _ in range(2):
            length = int(rng.integers(3, 12))
            buffer.add(f"q{i}", Response(rng.integers(0, 99, length), -rng.random(length)), 1.0, step)
        buffer.record(f"q{i}", int(rng.integers(1, K)))


@pytest.fixture
def buffer():
    made = ExperienceBuffer(K)
    grow(made, range(30), np.random.default_rng(0))
    made.retire("q7")
    made.mark_scored(made.rows("q3"), [0.5, 0.25])
    made.mark_used(int(made.rows("q3")[0]), 2)
    return made


@pytest.fixture
def checkpointer():
    return ExperienceCheckpointer(PRINT)


def same_state(a: ExperienceBuffer, b: ExperienceBuffer) -> bool:
    (x, meta_x), (y, meta_y) = a.state(), b.state()
    return (
        meta_x == meta_y
        and x.keys() == y.keys()
        and all(np.array_equal(x[n], y[n], equal_nan=True) for n in x if n != "question_names")
        and bytes(x["question_names"]) == bytes(y["question_names"])
    )


def segments(step_dir):
    return sorted((step_dir / "experience").glob("segment-*"))


def test_round_trip(tmp_path, buffer, checkpointer):
    checkpointer.save(tmp_path / "global_step_5", buffer, {"step": 5, "flags": [True, None, 0.1]})
    loaded, extra = ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_5")
    assert same_state(buffer, loaded)
    assert extra == {"step": 5, "flags": [True, None, 0.1]}
    assert sorted(p.name for p in (tmp_path / "global_step_5").iterdir()) == ["experience"]


def test_empty_buffer_round_trips(tmp_path, checkpointer):
    checkpointer.save(tmp_path / "global_step_1", ExperienceBuffer(K), {})
    loaded, _ = checkpointer.load(tmp_path / "global_step_1")
    assert same_state(ExperienceBuffer(K), loaded)


def steps(buffer, rng, first, n):
    """`n` steps of replay as a trainer does them; returns the plans (questions and token ids)."""
    plans = []
    for step in range(first, first + n):
        plan = []
        for question in sample_questions(buffer, 6, QuestionConfig(), rng):
            row = int(rng.choice(buffer.rows(question)))
            plan.append((question, row, buffer.trajectory(row).token_ids.tolist()))
            buffer.mark_used(row, step)
            buffer.record(question, int(rng.integers(0, K)))
        grow(buffer, rng.integers(0, 80, 5).tolist(), rng, step)
        retired = f"q{rng.integers(0, 80)}"
        buffer.retire(retired)
        buffer.unretire(retired)
        buffer.enforce_limits(step)
        plans.append(plan)
    return plans


@pytest.mark.parametrize("options", [{}, {"cooldown_steps": 2, "max_per_question": 3, "max_age_steps": 20}])
def test_hundred_plans_after_loading_are_those_of_never_stopping(tmp_path, checkpointer, options):
    config, rng = BufferConfig(**options), np.random.default_rng(4)
    buffer = ExperienceBuffer(K, config, segment_tokens=300)
    grow(buffer, range(60), rng)
    steps(buffer, rng, 0, 15)
    checkpointer.save(tmp_path / "global_step_15", buffer, {"rng": rng.bit_generator.state})
    loaded, extra = ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_15", config)
    again = np.random.default_rng(0)
    again.bit_generator.state = extra["rng"]
    expected = steps(buffer, rng, 15, 100)
    assert steps(loaded, again, 15, 100) == expected
    assert sum(map(len, expected)) > 300


def test_files_are_plain_safetensors_with_the_listed_checksums(tmp_path, buffer, checkpointer):
    checkpointer.save(tmp_path / "global_step_5", buffer, {})
    folder = tmp_path / "global_step_5" / "experience"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {p.name for p in folder.iterdir()} - {"manifest.json"}
    for name, entry in manifest["files"].items():
        raw = (folder / name).read_bytes()
        assert (len(raw), hashlib.sha256(raw).hexdigest()) == (entry["bytes"], entry["sha256"])
        tensors = safetensors.numpy.load(raw)
        schema = manifest["schema"]["segment-*" if name.startswith("segment") else name]
        assert {n: t.dtype.name for n, t in tensors.items()} == schema
    np.testing.assert_array_equal(tensors["token_ids"], buffer.state()[0]["token_ids"])
    np.testing.assert_array_equal(tensors["log_probs"], buffer.state()[0]["log_probs"])
    assert manifest["counts"] == {
        "trajectories": 58, "tokens": len(tensors["token_ids"]), "questions": 30, "retired": 1, "dead_trajectories": 0,
    }  # fmt: skip


def test_a_file_of_the_safetensors_library_is_readable(tmp_path):
    from recipe.exgrpo.checkpoint.tensors import FileRecord, read_tensors

    tensors = {"a": np.arange(5, dtype=np.int32), "b": np.linspace(0, 1, 3), "c": np.zeros(0, np.float16)}
    raw = safetensors.numpy.save(tensors)
    (tmp_path / "x").write_bytes(raw)
    found = read_tensors(tmp_path / "x", FileRecord(len(raw), hashlib.sha256(raw).hexdigest()))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_second_save_writes_only_what_is_new(tmp_path, buffer, checkpointer):
    checkpointer.save(tmp_path / "global_step_1", buffer, {})
    grow(buffer, range(100, 103), np.random.default_rng(9))
    buffer.record("q3", 0)
    checkpointer.save(tmp_path / "global_step_2", buffer, {})
    first, second = segments(tmp_path / "global_step_1"), segments(tmp_path / "global_step_2")
    assert [p.name for p in second] == ["segment-000000.safetensors", "segment-000001.safetensors"]
    assert second[0].stat().st_ino == first[0].stat().st_ino
    assert len(safetensors.numpy.load_file(second[1])["row_serial"]) == 6
    shutil.rmtree(tmp_path / "global_step_1")
    assert same_state(buffer, ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_2")[0])


def test_incremental_goes_on_after_loading(tmp_path, buffer, checkpointer):
    checkpointer.save(tmp_path / "global_step_1", buffer, {})
    resumed = ExperienceCheckpointer(PRINT)
    loaded, _ = resumed.load(tmp_path / "global_step_1")
    grow(loaded, range(100, 103), np.random.default_rng(9))
    resumed.save(tmp_path / "global_step_2", loaded, {})
    second = segments(tmp_path / "global_step_2")
    assert [p.stat().st_nlink for p in second] == [2, 1]
    assert same_state(loaded, ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_2")[0])


def test_another_buffer_shares_no_segments(tmp_path, buffer, checkpointer):
    checkpointer.save(tmp_path / "global_step_1", buffer, {})
    other = ExperienceBuffer(K)
    grow(other, range(30), np.random.default_rng(77))
    checkpointer.save(tmp_path / "global_step_2", other, {})
    assert [p.stat().st_nlink for p in segments(tmp_path / "global_step_2")] == [1]
    assert same_state(other, ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_2")[0])


def test_copies_where_links_are_impossible(tmp_path, buffer, checkpointer, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    checkpointer.save(tmp_path / "global_step_1", buffer, {})
    checkpointer.save(tmp_path / "global_step_2", buffer, {})
    shutil.rmtree(tmp_path / "global_step_1")
    assert same_state(buffer, ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_2")[0])


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped, no links"])
def test_a_lost_source_segment_is_written_again_from_memory(tmp_path, buffer, checkpointer, monkeypatch, damage):
    checkpointer.save(tmp_path / "global_step_1", buffer, {})
    source = segments(tmp_path / "global_step_1")[0]
    if damage == "gone":
        source.unlink()
    elif damage == "cut":
        os.truncate(source, 50)
    else:
        flip(source, 900)
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "no links")))
    checkpointer.save(tmp_path / "global_step_2", buffer, {})
    assert same_state(buffer, ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_2")[0])


def test_dead_rows_are_compacted_beyond_their_share(tmp_path, buffer, checkpointer):
    checkpointer.save(tmp_path / "global_step_1", buffer, {})
    size = segments(tmp_path / "global_step_1")[0].stat().st_size
    buffer.retire("q0")
    checkpointer.save(tmp_path / "global_step_2", buffer, {})
    assert segments(tmp_path / "global_step_2")[0].stat().st_nlink == 2
    assert read_manifest(tmp_path / "global_step_2/experience")["counts"]["dead_trajectories"] == 2
    for i in range(20):
        buffer.retire(f"q{i}")
    checkpointer.save(tmp_path / "global_step_3", buffer, {})
    assert read_manifest(tmp_path / "global_step_3/experience")["counts"]["dead_trajectories"] == 0
    assert sum(p.stat().st_size for p in segments(tmp_path / "global_step_3")) < size / 2
    for step in (2, 3):
        assert verify_checkpoint(tmp_path / f"global_step_{step}") == []
    assert same_state(buffer, ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_3")[0])


def test_many_small_segments_are_merged(tmp_path, checkpointer):
    buffer, rng = ExperienceBuffer(K), np.random.default_rng(0)
    most = 0
    for step in range(40):
        grow(buffer, [step], rng, step)
        checkpointer.save(tmp_path / f"global_step_{step}", buffer, {})
        most = max(most, len(segments(tmp_path / f"global_step_{step}")))
    assert most == recipe.exgrpo.checkpoint.writer.SMALL_SEGMENTS
    assert same_state(buffer, ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_39")[0])


def test_full_segments_are_cut_at_their_size(tmp_path, buffer, checkpointer, monkeypatch):
    monkeypatch.setattr(recipe.exgrpo.checkpoint.writer, "SEGMENT_TOKENS", 100)
    checkpointer.save(tmp_path / "global_step_1", buffer, {})
    sizes = [len(safetensors.numpy.load_file(p)["token_ids"]) for p in segments(tmp_path / "global_step_1")]
    assert len(sizes) > 3
    assert max(sizes) < 112
    assert same_state(buffer, ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_1")[0])


def test_saving_a_step_again_replaces_it(tmp_path, buffer, checkpointer):
    for value in range(3):
        buffer.retire(f"q{value}")
        checkpointer.save(tmp_path / "global_step_1", buffer, {"value": value})
        loaded, extra = ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_1")
        assert extra == {"value": value}
        assert same_state(buffer, loaded)
    assert [p.name for p in (tmp_path / "global_step_1").iterdir()] == ["experience"]


def test_state_moved_aside_by_an_unfinished_replacement_is_read(tmp_path, buffer, checkpointer):
    checkpointer.save(tmp_path / "global_step_1", buffer, {"value": 1})
    (tmp_path / "global_step_1/experience").rename(tmp_path / "global_step_1/.experience.old")
    resumed = ExperienceCheckpointer(PRINT)
    loaded, extra = resumed.load(tmp_path / "global_step_1")
    assert extra == {"value": 1}
    resumed.save(tmp_path / "global_step_1", loaded, {"value": 2})
    assert [p.name for p in (tmp_path / "global_step_1").iterdir()] == ["experience"]
    assert same_state(buffer, ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_1")[0])


def test_background_save_writes_the_state_at_the_call(tmp_path, buffer, checkpointer):
    buffer.unretire("q7")
    arrays, meta = buffer.state()
    checkpointer.save(tmp_path / "global_step_1", buffer, {"n": 1}, background=True)
    steps(buffer, np.random.default_rng(0), 1, 20)
    checkpointer.wait()
    loaded, _ = ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_1")
    assert same_state(ExperienceBuffer.from_state(arrays, meta), loaded)


def test_background_failure_is_raised_by_the_next_call(tmp_path, buffer, checkpointer):
    (tmp_path / "global_step_1").write_text("a file where the folder should be")
    checkpointer.save(tmp_path / "global_step_1", buffer, {}, background=True)
    with pytest.raises(ExperienceStateError, match=r"global_step_1.*was not saved"):
        checkpointer.save(tmp_path / "global_step_2", buffer, {})
    checkpointer.save(tmp_path / "global_step_2", buffer, {})
    assert verify_checkpoint(tmp_path / "global_step_2") == []


def test_extra_must_be_json(tmp_path, buffer, checkpointer):
    with pytest.raises(TypeError):
        checkpointer.save(tmp_path / "global_step_1", buffer, {"x": object()})
    assert not (tmp_path / "global_step_1").exists()


def test_prune_keeps_what_is_named(tmp_path, buffer, checkpointer):
    for step in (5, 10, 15):
        checkpointer.save(tmp_path / f"global_step_{step}", buffer, {})
        (tmp_path / f"global_step_{step}" / "data.pt").touch()
    removed = checkpointer.prune(tmp_path, keep=[tmp_path / "global_step_15"])
    assert removed == [tmp_path / "global_step_10", tmp_path / "global_step_5"]
    assert sorted(p.name for p in (tmp_path / "global_step_5").iterdir()) == ["data.pt"]
    assert verify_checkpoint(tmp_path / "global_step_15") == []


# ---- refusals


def flip(path: Path, at: int, bits: int = 1):
    raw = bytearray(path.read_bytes())
    raw[at] ^= bits
    path.write_bytes(raw)


def edit_manifest(folder: Path, **changes):
    """A manifest that is consistent in itself, as a forger would write it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    (folder / "manifest.json").write_bytes(encoded(manifest | changes))


@pytest.fixture
def folder(tmp_path, buffer, checkpointer):
    checkpointer.save(tmp_path / "global_step_5", buffer, {})
    return tmp_path / "global_step_5" / "experience"


@pytest.mark.parametrize("name", ["rows", "questions", "segment-000000"])
@pytest.mark.parametrize(
    ("damage", "kind", "reason"),
    [
        (lambda p: os.truncate(p, p.stat().st_size - 1), CorruptState, "the manifest says"),
        (lambda p: flip(p, 20), CorruptState, "SHA-256"),
        (lambda p: p.unlink(), MissingState, "cannot be opened"),
        (lambda p: p.write_bytes(p.read_bytes() + b"\0"), CorruptState, "the manifest says"),
    ],
    ids=["truncated", "flipped", "missing", "longer"],
)
def test_damaged_files_are_refused_by_name(folder, name, damage, kind, reason):
    damage(folder / f"{name}.safetensors")
    with pytest.raises(kind, match=reason) as caught:
        ExperienceCheckpointer(PRINT).load(folder.parent)
    assert caught.value.file == folder / f"{name}.safetensors"
    assert [type(p) for p in verify_checkpoint(folder.parent)] == [kind]


@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        (lambda f: edit_manifest(f, version=3), NewerState, "version 3 is newer than 2"),
        (lambda f: edit_manifest(f, format="other"), ForeignState, "not a manifest of format"),
        (lambda f: (f / "manifest.json").write_text("[]"), ForeignState, "not a manifest"),
        (lambda f: (f / "manifest.json").write_text("{"), CorruptState, "not readable as JSON"),
        (lambda f: (f / "manifest.json").write_text("[" * 100000), CorruptState, "not readable as JSON"),
        (lambda f: (f / "manifest.json").unlink(), MissingState, "cannot be opened"),
        (lambda f: edit_manifest(f, files={}), CorruptState, "an entry is missing"),
        (lambda f: edit_manifest(f, files={"../../x": {}}), CorruptState, "does not belong"),
    ],
    ids=["newer", "foreign", "list", "cut", "deep", "missing", "no files", "path"],
)
def test_bad_manifests_are_refused(folder, change, kind, reason):
    change(folder)
    with pytest.raises(kind, match=reason):
        ExperienceCheckpointer(PRINT).load(folder.parent)


def test_every_single_flipped_byte_is_detected(tmp_path, checkpointer):
    small = ExperienceBuffer(K)
    grow(small, range(2), np.random.default_rng(0))
    checkpointer.save(tmp_path / "global_step_5", small, {"rng": 1})
    folder = tmp_path / "global_step_5" / "experience"
    rng, files = np.random.default_rng(0), sorted(folder.iterdir())
    flipped = 0
    for path in files:
        raw = path.read_bytes()
        for at in range(len(raw)):
            damaged = bytearray(raw)
            damaged[at] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            assert verify_checkpoint(folder.parent), f"byte {at} of {path.name}"
            flipped += 1
        path.write_bytes(raw)
    assert verify_checkpoint(folder.parent) == []
    assert flipped > 3000


def test_nothing_here_is_refused(tmp_path):
    with pytest.raises(MissingState, match="global_step_9/experience: there is no experience state"):
        ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_9")


def test_files_of_two_checkpoints_do_not_mix(tmp_path, folder, buffer, checkpointer):
    buffer.retire("q1")
    checkpointer.save(tmp_path / "global_step_6", buffer, {})
    shutil.copy(folder / "rows.safetensors", tmp_path / "global_step_6/experience/rows.safetensors")
    with pytest.raises(CorruptState, match=r"rows\.safetensors"):
        checkpointer.load(tmp_path / "global_step_6")


def test_forged_contents_are_refused_not_executed(folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    path = folder / "segment-000000.safetensors"
    raw = pickle.dumps(Bomb())
    path.write_bytes(raw)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files[path.name] |= {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    edit_manifest(folder, files=files)
    with pytest.raises(CorruptState, match="not a readable safetensors file"):
        ExperienceCheckpointer(PRINT).load(folder.parent)
    assert not (tmp_path / "executed").exists()


def test_no_module_of_the_buffer_can_unpickle_or_evaluate():
    root = Path(recipe.exgrpo.core.buffer.experience.__file__).parents[2]
    paths = [*(root / "checkpoint").glob("*.py"), *(root / "core" / "buffer").glob("*.py")]
    assert len(paths) > 10
    banned = {"pickle", "marshal", "shelve", "yaml", "torch", "joblib", "dill", "eval", "exec", "compile", "__import__"}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            names = {a.name.split(".")[0] for a in node.names} if isinstance(node, ast.Import) else set()
            names |= {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()
            names |= {node.id} if isinstance(node, ast.Name) else set()
            assert not names & banned, path
            assert not (isinstance(node, ast.keyword) and node.arg == "allow_pickle"), path


def test_checkpoint_modules_need_no_verl_ray_or_torch():
    code = "import sys, recipe.exgrpo.checkpoint.checkpointer; print([m for m in ('verl', 'ray', 'torch') if m in sys.modules])"
    root = Path(recipe.exgrpo.checkpoint.checkpointer.__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# ---- fall-back and fingerprints


def test_fall_back_takes_the_newest_intact_and_says_what_was_lost(tmp_path, buffer, checkpointer, caplog):
    for step in (5, 10, 15, 20):
        grow(buffer, [200 + step], np.random.default_rng(step))
        checkpointer.save(tmp_path / f"global_step_{step}", buffer, {"step": step})
    flip(tmp_path / "global_step_15/experience/rows.safetensors", 40)
    (tmp_path / "global_step_10/experience/questions.safetensors").unlink()
    with pytest.raises(CorruptState):
        checkpointer.load(tmp_path / "global_step_15")
    with caplog.at_level(logging.ERROR):
        loaded, extra = checkpointer.load(tmp_path / "global_step_15", fall_back=True)
    assert extra == {"step": 5}
    assert "LOST EXPERIENCE" in caplog.text
    assert "rows.safetensors" in caplog.text
    assert "60 trajectories of 31 questions; the lost state had 64 of 33" in caplog.text
    assert loaded.stats(0)["trajectories"] == 60
    newest, problems = find_newest_intact(tmp_path)
    assert newest == tmp_path / "global_step_20"
    assert problems == {}
    shutil.rmtree(tmp_path / "global_step_20")
    newest, problems = find_newest_intact(tmp_path)
    assert newest == tmp_path / "global_step_5"
    assert [p.name for p in problems] == ["global_step_15", "global_step_10"]


def test_fall_back_without_anything_intact_raises(tmp_path, folder):
    flip(folder / "rows.safetensors", 40)
    with pytest.raises(CorruptState):
        ExperienceCheckpointer(PRINT).load(folder.parent, fall_back=True)


@pytest.mark.parametrize("key", ["model", "tokenizer", "group_size"])
def test_changed_fingerprint_is_refused_even_with_fall_back(folder, key):
    now = ExperienceCheckpointer(PRINT | {key: 6 if key == "group_size" else "other"})
    with pytest.raises(MismatchedState, match=f"saved with {key} .*Refused unless allowed"):
        now.load(folder.parent, fall_back=True, allow={"model", "tokenizer", "group_size"} - {key})


def test_allowed_group_size_change_scales(folder, buffer, tmp_path):
    now = ExperienceCheckpointer(PRINT | {"group_size": 8})
    loaded, _ = now.load(folder.parent, allow={"group_size"})
    assert loaded.group_size == 8
    assert loaded.latest_count("q3") == 2 * buffer.latest_count("q3")
    now.save(tmp_path / "global_step_6", loaded, {})
    assert same_state(loaded, ExperienceCheckpointer(PRINT | {"group_size": 8}).load(tmp_path / "global_step_6")[0])


def test_allowed_tokenizer_change_keeps_counts_only(folder, buffer, caplog):
    loaded, _ = ExperienceCheckpointer(PRINT | {"tokenizer": "new"}).load(folder.parent, allow={"tokenizer"})
    assert loaded.stats(0)["trajectories"] == 0
    assert loaded.latest_count("q3") == buffer.latest_count("q3")
    assert loaded.retired == ["q7"]
    assert "58 trajectories dropped" in caplog.text


def test_allowed_model_change_keeps_everything(folder, buffer):
    loaded, _ = ExperienceCheckpointer(PRINT | {"model": "new"}).load(folder.parent, allow={"model"})
    assert same_state(buffer, loaded)


def test_fingerprint_must_be_complete_and_true(tmp_path, buffer):
    with pytest.raises(ValueError, match="tokenizer is missing"):
        ExperienceCheckpointer({"model": "m", "group_size": 4})
    with pytest.raises(ValueError, match="group_size 4 and the fingerprint 8"):
        ExperienceCheckpointer(PRINT | {"group_size": 8}).save(tmp_path / "global_step_1", buffer, {})


def test_log_prob_dtype_may_change_between_runs(tmp_path, folder, buffer):
    config = BufferConfig(log_prob_dtype="float16")
    resumed = ExperienceCheckpointer(PRINT)
    half, _ = resumed.load(folder.parent, config)
    grow(half, [99], np.random.default_rng(5))
    resumed.save(tmp_path / "global_step_6", half, {})
    assert same_state(half, ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_6", config)[0])


def test_open_checkpoint_maps_without_checking_tokens(folder, buffer):
    opened, manifest = open_checkpoint(folder)
    assert same_state(buffer, opened)
    assert manifest["counts"]["trajectories"] == 58
    segment = folder / "segment-000000.safetensors"
    flip(segment, segment.stat().st_size * 3 // 4)  # in its tokens, which stand between wide and narrow columns
    assert open_checkpoint(folder.parent)[0].stats(0)["trajectories"] == 58
    with pytest.raises(CorruptState):
        open_checkpoint(folder.parent, verify=True)
