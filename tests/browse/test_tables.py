"""The page's columns against the buffer and the history, its tokens against the tokenizer, and what stands in the file."""

import base64
import json
import math
import re
import unicodedata
import zlib

import numpy as np
import pandas as pd
import pytest
from browse_runs import HOSTILE, HOSTILE_IDS, TOKENIZER, K, buffer_of, hostile_run, log, save
from tokenizers import Tokenizer, decoders, models

from recipe.exgrpo.browse import charts, tables
from recipe.exgrpo.browse.page import Limits, escaped, policy, render
from recipe.exgrpo.browse.sources import Source, read
from recipe.exgrpo.browse.tokens import OTHERS, Words, chunks, speller
from recipe.exgrpo.checkpoint.errors import CorruptState, MissingState
from recipe.exgrpo.core.buffer import ExperienceBuffer, Response
from recipe.exgrpo.runs.metrics import read_run


@pytest.fixture
def run(tmp_path):
    return hostile_run(tmp_path / "run")


def test_the_columns_of_trajectories_are_the_buffers(run):
    content = read(run)
    columns = tables.trajectories(content.frozen, tables.newest(content.frozen, 100))
    for i, row in enumerate(columns["row"]):
        trajectory = content.buffer.trajectory(row)
        assert content.frozen.names[columns["question"][i]] == trajectory.question
        assert (columns["born"][i], columns["uses"][i]) == (trajectory.birth_step, trajectory.use_count)
        assert (columns["length"][i], columns["prompt"][i]) == (len(trajectory.token_ids), len(trajectory.prompt_ids))
        assert (columns["solved"][i], columns["size"][i], columns["advantage"][i]) == (2, K, 0.5)
        if math.isnan(trajectory.nll):
            assert columns["entropy"][i] is columns["ratio"][i] is None
        else:  # the tool's token has no say
            own = trajectory.log_probs[trajectory.mask].astype(np.float64)
            assert columns["ratio"][i] == pytest.approx(math.exp(-trajectory.nll - own.mean()), rel=1e-4)


def test_of_too_many_the_newest_are_shown_and_the_page_says_so(run):
    page = render(read(run), limits=Limits(trajectories=5))
    assert (page.about["trajectories_shown"], page.about["trajectories"]) == (5, 18)
    assert data_of(page)["trajectories"]["row"] == sorted(read(run).buffer.candidates().row.tolist())[-5:]


def test_questions_have_their_outcomes_and_their_place(run):
    content = read(run)
    known = tables.Questions(content.frozen.names)
    found = tables.questions(content, known)
    by_name = {name: i for i, name in enumerate(found["name"])}
    assert set(by_name) == set(HOSTILE_IDS)
    expected = {name: [] for name in HOSTILE_IDS}
    for step in content.steps:
        for name, solved in zip(step["question"], step["solved"], strict=True):
            expected[name] += [step["step"], solved, K]
    assert {name: found["outcomes"][i] for name, i in by_name.items()} == expected
    assert sum(found["replayed"]) == len(content.steps)
    retired = by_name[HOSTILE_IDS[4]]
    assert (found["state"][retired], found["count"][retired], found["stored"][retired]) == ("retired", None, 0)
    assert {found["state"][i] for i in range(len(by_name)) if i != retired} == {"stored"}


def test_a_question_is_unsolved_empty_or_only_seen():
    buffer = ExperienceBuffer(K)
    for name, count in (("a", 0), ("b", 2), ("c", 2)):
        buffer.record(name, count)
    buffer.add("a", Response([1], [-1.0]), 1.0, 1)
    buffer.add("b", Response([1], [-1.0]), 1.0, 1)
    states = [tables.state_of(buffer, name, len(buffer.rows(name))) for name in ("a", "b", "c", "d")]
    assert states == ["unsolved", "stored", "empty", "seen"]


def test_chunks_unpack_to_what_is_stored(run):
    frozen = read(run).frozen
    at, words = tables.newest(frozen, 100), Words(TOKENIZER)
    ids, log_probs = frozen.tokens(at)
    (chunk,) = chunks(frozen, at, words, 10**6)
    raw = zlib.decompress(base64.b64decode(chunk.data))
    numbers, steps = np.frombuffer(raw, "<u4", len(ids)), np.frombuffer(raw, "<u2", len(ids), 4 * len(ids))
    assert words.ids[numbers].tolist() == ids.tolist()
    assert (steps == OTHERS).tolist() == np.isnan(log_probs).tolist()
    own = steps != OTHERS
    assert steps[own] / -1000 == pytest.approx(log_probs[own], abs=5e-4)
    assert list(chunks(frozen, at, words, 10)) == []  # no room: none


def test_words_are_the_bytes_of_the_text():
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    spell = speller(tokenizer)
    for text in (
        *HOSTILE,
        "naïve 漢字 😀\n\ttab",
        "".join(map(chr, [*range(32, 0x250), *range(0x4E00, 0x4E80), *range(0x1F600, 0x1F640)])),
    ):
        ids = tokenizer.encode(text).ids
        assert b"".join(map(spell, ids)).decode() == unicodedata.normalize("NFC", text)  # as the tokenizer does first
    assert spell(tokenizer.token_to_id("<|im_end|>")) == b"<|im_end|>"
    assert spell(10**6) == "⟨1000000⟩".encode()


def test_words_of_a_sentencepiece_tokenizer():
    tokenizer = Tokenizer(models.BPE(vocab={"▁the": 0, "<0xE2>": 1, "a": 2}, merges=[]))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    assert [speller(tokenizer)(i) for i in range(3)] == [b" the", b"\xe2", b"a"]


def test_buckets_over_steps_are_cells(run):
    cells = charts.bucket_cells(read_run(run))
    metrics = read_run(run).metrics
    for step, k, value in zip(cells["step"], cells["k"], cells["questions"], strict=True):
        assert metrics[f"experience/bucket/{k}"][step] == value
    assert len(cells["step"]) == 12 * (K - 1)
    assert (cells["left"][0], cells["right"][-1]) == (0.5, 12.5)


def test_long_curves_are_means_of_stretches():
    values = pd.Series(np.arange(8000.0), index=np.arange(8000))
    thin = charts.thinned(values)
    assert len(thin) == charts.POINTS
    assert thin.iloc[0] == pytest.approx(4.5) == thin.index[0]
    assert thin.mean() == pytest.approx(values.mean())


def test_the_baseline_is_beside_the_run(run, tmp_path):
    log(tmp_path / "base", 6, ["a"], [0])
    drawn = json.dumps(charts.curves(read_run(run), read_run(tmp_path / "base")))
    assert "baseline: held out" in drawn
    assert "baseline" not in json.dumps(charts.curves(read_run(run), None))


def data_of(page) -> dict:
    """What the page's data block holds, as a browser reads it."""
    (text,) = re.findall(r'<script type="application/octet-stream" id="data">(.*?)</script>', page.html, re.DOTALL)
    return json.loads(text)


def test_no_text_of_a_model_is_markup_in_the_file(run):
    page = render(read(run), tokenizer=TOKENIZER)
    page.html.encode("utf-8")  # a lone surrogate would not be written
    assert data_of(page)["questions"]["name"] == read(run).frozen.names
    blocks = re.findall(r'<script type="application/octet-stream" id="[a-z0-9-]+">(.*?)</script>', page.html, re.DOTALL)
    assert len(blocks) >= 4
    assert not any(character in block for block in blocks for character in "<>&\u2028\u2029")
    assert len(re.findall(r"<script>", page.html)) == 2 + page.html.count("<script>window.pwned") == 2


def test_json_in_the_page_is_json():
    value = {"a": ["</script><!--", "\ud800", "\u2028", "&lt;", 1.5, None]}
    assert json.loads(escaped(value)) == value


def test_the_policy_lets_our_scripts_run_and_nothing_else():
    text = policy(["a", "b"], served=False)
    assert "default-src 'none'" in text
    assert "connect-src 'none'" in text
    assert "connect-src 'self'" in policy(["a"], served=True)
    assert re.search(r"script-src ('sha256-[A-Za-z0-9+/=]{44}' ?){2};", text)
    assert "unsafe-eval" not in text


# ---- what a path means


def test_a_state_of_a_run_is_found_with_its_run(run):
    state = run / "global_step_12"
    for path in (state, state / "experience"):
        assert Source.find(path) == Source(run.resolve(), state / "experience")
    assert read(run).step == 12


def test_a_checkpoint_that_was_pruned_between_two_looks_is_looked_for_again(run, monkeypatch):
    """While the run goes on: the one that has come is shown. One that stays away is an error."""
    there, gone = Source.find(run), Source(run, run / "global_step_6" / "experience")
    found = iter([gone, there, gone, gone])
    monkeypatch.setattr(Source, "find", classmethod(lambda cls, path: next(found)))
    assert read(run).step == 12
    with pytest.raises(MissingState):
        read(run)


def test_a_run_without_a_checkpoint_and_a_state_without_a_run(tmp_path):
    log(tmp_path / "young", 3, ["a", "b"], [0])
    content = read(tmp_path / "young")
    assert content.buffer is None
    page = render(content)
    assert data_of(page)["trajectories"] is None
    assert page.about["questions"] == 2
    save(tmp_path / "alone", buffer_of({"a": [("1", 3)]}), 4)
    alone = render(read(tmp_path / "alone" / "global_step_4" / "experience"), tokenizer=None)
    assert (alone.about["run"], alone.about["trajectories"], alone.about["decoded"]) == (None, 1, False)


def test_a_damaged_state_and_a_folder_of_something_else_are_named(run, tmp_path):
    segment = next((run / "global_step_12" / "experience").glob("segment-*"))
    raw = bytearray(segment.read_bytes())
    raw[-1] ^= 1
    segment.write_bytes(raw)
    with pytest.raises(CorruptState, match="segment-000000"):
        read(run)
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match="neither a run's folder"):
        read(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="not a folder"):
        read(tmp_path / "nothing")


def test_nonsense_limits_are_refused():
    with pytest.raises(ValueError, match="--limit"):
        Limits(trajectories=0)
