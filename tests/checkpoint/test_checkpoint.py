"""Experience checkpoints: round trips, incremental saving, refusals, fall-back."""

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

import recipe.exgrpo.checkpoint.writer
import recipe.exgrpo.core.buffer.experience
from recipe.exgrpo.checkpoint.checkpointer import ExperienceCheckpointer
from recipe.exgrpo.checkpoint.errors import CorruptState, ForeignState, MissingState, NewerState
from recipe.exgrpo.checkpoint.format import encoded
from recipe.exgrpo.checkpoint.stored import Stored, newest_intact, problems_of
from recipe.exgrpo.checkpoint.tensors import read_tensors
from recipe.exgrpo.core.buffer import ExperienceBuffer, Origin, Provenance, Response
from recipe.exgrpo.core.config import BufferConfig, QuestionConfig
from recipe.exgrpo.core.sampler import sample_questions
from verl_ext.files import FileRecord

K = 4
PRINT = {"model": "qwen2-64", "tokenizer": "abc", "group_size": K, "policy": "exgrpo"}


def grow(buffer, questions, rng, step=0):
    for i in questions:
        for _ in range(2):
            length = int(rng.integers(3, 12))
            buffer.add(f"q{i}", Response(rng.integers(0, 99, length), -rng.random(length)), 1.0, step)
        buffer.record(f"q{i}", int(rng.integers(1, K)))


def grow_groups(buffer, questions, rng, step=0):
    """As zero-variance refill stores: whole groups with their prompts, equal responses, tokens that are not the model's."""
    for i in questions:
        group, prompt = buffer.new_group(), rng.integers(0, 99, 5)
        for _ in range(2):
            response = Response([i, 7, 8], [-1.0, 0.0, -0.5], mask=[True, i % 2 == 0, True], prompt_ids=prompt)
            where = Provenance(group, successes=2, size=K, advantage=0.5)
            buffer.add(f"q{i}", response, 1.0, step, provenance=where, keep_prompt=True, keep_duplicates=True)


def exgrpo_store():
    made = ExperienceBuffer(K)
    grow(made, range(30), np.random.default_rng(0))
    made.retire("q7")
    made.mark_scored(made.rows("q3"), [0.5, 0.25])
    made.mark_used(int(made.rows("q3")[0]), 2)
    return made


def refill_store():
    made = ExperienceBuffer(K)
    made.origin = Origin("rollout", "template", 0.6)
    grow_groups(made, range(30), np.random.default_rng(0))
    made.retire("q7")
    made.mark_scored(made.rows("q3"), [0.5, 0.25], [0.75, 1.0], [0.1, 0.2])
    made.mark_used(made.rows("q3"), 2)
    made.drop(made.rows("q5"), "reuse")
    grow(made, [5], np.random.default_rng(1))
    return made


STORES = {"exgrpo": exgrpo_store, "refill": refill_store}


@pytest.fixture
def buffer():
    return exgrpo_store()


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


@pytest.mark.parametrize("kind", STORES)
def test_round_trip(tmp_path, kind, checkpointer):
    buffer = STORES[kind]()
    checkpointer.save(tmp_path / "global_step_5", buffer, {"step": 5, "flags": [True, None, 0.1]})
    loaded, stored = ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_5")
    assert same_state(buffer, loaded)
    assert stored.extra == {"step": 5, "flags": [True, None, 0.1]}
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
    loaded, stored = ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_15", config)
    again = np.random.default_rng(0)
    again.bit_generator.state = stored.extra["rng"]
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
    assert Stored.open(tmp_path / "global_step_2").manifest["counts"]["dead_trajectories"] == 2
    for i in range(20):
        buffer.retire(f"q{i}")
    checkpointer.save(tmp_path / "global_step_3", buffer, {})
    assert Stored.open(tmp_path / "global_step_3").manifest["counts"]["dead_trajectories"] == 0
    assert sum(p.stat().st_size for p in segments(tmp_path / "global_step_3")) < size / 2
    for step in (2, 3):
        assert problems_of(tmp_path / f"global_step_{step}") == []
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
        loaded, stored = ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_1")
        assert stored.extra == {"value": value}
        assert same_state(buffer, loaded)
    assert [p.name for p in (tmp_path / "global_step_1").iterdir()] == ["experience"]


def test_state_moved_aside_by_an_unfinished_replacement_is_read(tmp_path, buffer, checkpointer):
    checkpointer.save(tmp_path / "global_step_1", buffer, {"value": 1})
    (tmp_path / "global_step_1/experience").rename(tmp_path / "global_step_1/.experience.old")
    resumed = ExperienceCheckpointer(PRINT)
    loaded, stored = resumed.load(tmp_path / "global_step_1")
    assert stored.extra == {"value": 1}
    resumed.save(tmp_path / "global_step_1", loaded, {"value": 2})
    assert [p.name for p in (tmp_path / "global_step_1").iterdir()] == ["experience"]
    assert same_state(buffer, ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_1")[0])


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
    assert problems_of(tmp_path / "global_step_15") == []


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
    assert [type(p) for p in problems_of(folder.parent)] == [kind]


@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        (lambda f: edit_manifest(f, version=3), NewerState, "version 3 is newer than 2"),
        (lambda f: edit_manifest(f, version=1), ForeignState, "version 1 of exgrpo-experience is not read any more"),
        (lambda f: edit_manifest(f, format="other"), ForeignState, "not a manifest of format"),
        (lambda f: (f / "manifest.json").write_text("[]"), ForeignState, "not a manifest"),
        (lambda f: (f / "manifest.json").write_text("{"), CorruptState, "not readable as JSON"),
        (lambda f: (f / "manifest.json").write_text("[" * 100000), CorruptState, "not readable as JSON"),
        (lambda f: (f / "manifest.json").unlink(), MissingState, "cannot be opened"),
        (lambda f: edit_manifest(f, files={}), CorruptState, "an entry is missing"),
        (lambda f: edit_manifest(f, files={"../../x": {}}), CorruptState, "does not belong"),
    ],
    ids=["newer", "older", "foreign", "list", "cut", "deep", "missing", "no files", "path"],
)
def test_bad_manifests_are_refused(folder, change, kind, reason):
    change(folder)
    with pytest.raises(kind, match=reason):
        ExperienceCheckpointer(PRINT).load(folder.parent)


@pytest.mark.parametrize("add", [grow, grow_groups])
def test_every_single_flipped_byte_is_detected(tmp_path, checkpointer, add):
    small = ExperienceBuffer(K)
    add(small, range(2), np.random.default_rng(0))
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
            assert problems_of(folder.parent), f"byte {at} of {path.name}"
            flipped += 1
        path.write_bytes(raw)
    assert problems_of(folder.parent) == []
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
    code = (
        "import sys, recipe.exgrpo.checkpoint.checkpointer, recipe.exgrpo.checkpoint.resume;"
        "print([m for m in ('verl', 'ray', 'torch') if m in sys.modules])"
    )
    root = Path(recipe.exgrpo.checkpoint.writer.__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# ---- fall-back


def test_fall_back_takes_the_newest_intact_and_says_what_was_lost(tmp_path, buffer, checkpointer, caplog):
    for step in (5, 10, 15, 20):
        grow(buffer, [200 + step], np.random.default_rng(step))
        checkpointer.save(tmp_path / f"global_step_{step}", buffer, {"step": step})
    flip(tmp_path / "global_step_15/experience/rows.safetensors", 40)
    (tmp_path / "global_step_10/experience/questions.safetensors").unlink()
    with pytest.raises(CorruptState):
        checkpointer.load(tmp_path / "global_step_15")
    with caplog.at_level(logging.ERROR):
        loaded, stored = checkpointer.load(tmp_path / "global_step_15", fall_back=True)
    assert stored.extra == {"step": 5}
    assert "LOST EXPERIENCE" in caplog.text
    assert "rows.safetensors" in caplog.text
    assert "60 trajectories of 31 questions; the lost state had 64 of 33" in caplog.text
    assert loaded.stats(0)["trajectories"] == 60
    newest, problems = newest_intact(tmp_path)
    assert newest == tmp_path / "global_step_20"
    assert problems == {}
    shutil.rmtree(tmp_path / "global_step_20")
    newest, problems = newest_intact(tmp_path)
    assert newest == tmp_path / "global_step_5"
    assert [p.name for p in problems] == ["global_step_15", "global_step_10"]


def test_fall_back_without_anything_intact_raises(tmp_path, folder):
    flip(folder / "rows.safetensors", 40)
    with pytest.raises(CorruptState):
        ExperienceCheckpointer(PRINT).load(folder.parent, fall_back=True)


def test_log_prob_dtype_may_change_between_runs(tmp_path, folder, buffer):
    config = BufferConfig(log_prob_dtype="float16")
    resumed = ExperienceCheckpointer(PRINT)
    half, _ = resumed.load(folder.parent, config)
    grow(half, [99], np.random.default_rng(5))
    resumed.save(tmp_path / "global_step_6", half, {})
    assert same_state(half, ExperienceCheckpointer(PRINT).load(tmp_path / "global_step_6", config)[0])


def test_a_reader_in_a_hurry_compares_no_checksums(folder, buffer):
    stored = Stored.open(folder)
    assert same_state(buffer, stored.buffer())
    assert stored.manifest["counts"]["trajectories"] == 58
    assert stored.step == 5
    segment = folder / "segment-000000.safetensors"
    flip(segment, segment.stat().st_size * 3 // 4)  # in its tokens, which stand between wide and narrow columns
    assert stored.buffer(verify=False).stats(0)["trajectories"] == 58
    with pytest.raises(CorruptState):
        stored.buffer()
