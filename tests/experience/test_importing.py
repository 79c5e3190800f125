"""Traces into a store: every form of a row, matching, rendering, grading, lengths, duplicates, and what is said of bad rows."""

import gzip
import json
import shutil
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from toy_target import MODEL, K, imported, rated, row_of, stored, target, write

from recipe.exgrpo.checkpoint.checkpointer import ExperienceCheckpointer
from recipe.exgrpo.checkpoint.resume import tokenizer_fingerprint
from recipe.exgrpo.core.buffer import ExperienceBuffer, Origin, Provenance, Response, prompt_hash
from recipe.exgrpo.core.buffer.inspection import regrade
from recipe.exgrpo.core.config import ExperienceConfig
from recipe.exgrpo.experience import table
from recipe.exgrpo.experience.importing import Importer
from recipe.exgrpo.experience.questions import Questions
from recipe.exgrpo.experience.rendering import Renderer
from recipe.exgrpo.experience.sources import Source, SourceError
from recipe.exgrpo.experience.tokenizers import load_tokenizer
from recipe.exgrpo.experience.traces import BadTrace, Columns
from verl_ext.tools import ToolSetup

TOKENIZER = load_tokenizer(MODEL)


def ids_of(text: str) -> list[int]:
    return [*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]


def prompt_of(question: str) -> list[int]:
    """By hand, from the toy's template: the user's turn, and the assistant's opened."""
    text = f"<|im_start|>user\nWhat is {question}?<|im_end|>\n<|im_start|>assistant\n"
    return TOKENIZER(text)["input_ids"]


GOOD = {"question_id": "2+2", "response": "2+2=4"}
ANSWER = {"role": "assistant", "content": "2+2=4"}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        {"prompt": "What is  2+2?", "response": "2+2=4"},
        {"prompt": row_of("2+2")["prompt"], "target": [{"role": "assistant", "content": "2+2=4"}]},
        {"messages": [*row_of("2+2")["prompt"], {"role": "assistant", "content": "2+2=4"}]},
        {"messages": [{"role": "assistant", "content": "2+2=4"}], "question_id": "2+2"},
        {"question": "What is 2+2?", "answer": "2+2=4"},
        {"problem": "What is 2+2?", "solution": f"2+2=4{TOKENIZER.eos_token}"},
        {"question": "2+2", "token_ids": ids_of("2+2=4")},
        {"extra_info": {"question_id": "2+2"}, "text": "2+2=4"},
        {"conversations": [{"from": "human", "value": "What is 2+2?"}, {"from": "gpt", "value": "2+2=4"}]},
        {"prompt": "What is 2+2?", "response": [{"role": "assistant", "content": [{"type": "text", "text": "2+2=4"}]}]},
        {"messages": [SYSTEM, *row_of("2+2")["prompt"], {"role": "assistant", "content": "2+2=4"}]},
    ],
    ids=lambda row: "-".join(row),
)
def test_every_form_of_a_row_becomes_the_same_trajectory(tmp_path, row, suffix):
    buffer, report = imported(write(tmp_path / f"expert{suffix}", row))
    (found,) = stored(buffer)
    assert (found.question, found.token_ids.tolist(), found.reward) == ("2+2", ids_of("2+2=4"), 1.0)
    assert found.prompt_ids.tolist() == prompt_of("2+2")
    assert found.prompt_hash == prompt_hash(prompt_of("2+2"))
    np.testing.assert_array_equal(found.log_probs, rated([(found.prompt_ids, found.token_ids)])[0])
    assert found.origin == Origin("expert", target().chat_template, 1.0, "scored")
    assert (report.read, report.imported, report.questions, report.scored) == (1, 1, 1, 1)


def test_columns_may_have_any_name(tmp_path):
    path = write(tmp_path / "a.jsonl", {"q": "What is 2+2?", "gold_solution": "2+2=4"})
    assert imported(path, columns=Columns(prompt="q", response="gold_solution"))[1].imported == 1


def test_a_tag_replaces_what_rows_say_of_their_source_and_what_they_say_replaces_the_file(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD | {"source": "r1"}, {"question_id": "1+3", "response": "=4"})
    assert dict(imported(path)[1].sources) == {"r1": 1, "a": 1}
    assert dict(imported(path, tag="mine")[1].sources) == {"mine": 2}


def test_what_the_reward_refuses_is_counted_and_kept_only_on_request(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD, {"question_id": "2+2", "response": "2+2=5"})
    buffer, report = imported(path)
    assert (len(stored(buffer)), report.failures, report.kept_failures) == (1, 1, 0)
    buffer, report = imported(path, keep_failures=True)
    assert [found.reward for found in stored(buffer)] == [1.0, 0.0]
    assert (report.imported, report.failures, report.kept_failures) == (2, 0, 1)


def test_what_the_grader_did_not_finish_stays_out(tmp_path):
    hung = target(function=lambda **_: {"score": 0.0, "timeout": 1.0})
    buffer, report = imported(write(tmp_path / "a.jsonl", GOOD), on=hung, keep_failures=True)
    assert (len(stored(buffer)), report.not_graded) == (0, 1)


def test_a_long_trace_is_refused_or_cut_and_then_graded_as_cut_off(tmp_path):
    path = write(tmp_path / "a.jsonl", {"question_id": "2+2", "response": "0" * 32 + "=4"})
    assert imported(path)[1].overlong == 1
    assert imported(path, overlong="cut")[1].failures == 1
    told = []
    spy = target(function=lambda extra_info, **_: told.append(extra_info["truncated"]) or 1.0)
    buffer, report = imported(path, on=spy, overlong="cut")
    assert (told, report.cut, len(stored(buffer)[0].token_ids)) == ([True], 1, 32)
    imported(write(tmp_path / "b.jsonl", GOOD), on=spy)
    assert told == [True, False]


def test_a_prompt_over_the_limit_is_refused(tmp_path):
    assert imported(write(tmp_path / "a.jsonl", GOOD), on=target(max_prompt=5))[1].overlong == 1


def test_equal_responses_to_one_question_are_stored_once(tmp_path):
    twice, other = write(tmp_path / "a.jsonl", GOOD, GOOD), GOOD | {"question_id": "1+3"}
    buffer, report = imported(twice, write(tmp_path / "b.jsonl", GOOD, other))
    assert ([f.question for f in stored(buffer)], report.duplicates) == (["2+2", "1+3"], 2)
    assert imported(twice, into=buffer)[1].duplicates == 2


def test_traces_of_other_questions_and_of_retired_ones_stay_out(tmp_path):
    buffer = imported()[0]
    buffer.retire("1+3")
    path = write(tmp_path / "a.jsonl", {"prompt": "What is 9+9?", "response": "=4"}, GOOD | {"question_id": "1+3"})
    report = imported(path, into=buffer)[1]
    assert (report.unmatched, report.retired, report.imported) == (1, 1, 0)


def test_a_prompt_that_two_questions_share_finds_neither(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "What is 2+2?", "response": "2+2=4"}, GOOD)
    shared = Questions({"2+2": row_of("2+2"), "copy": row_of("2+2")})
    report = imported(path, on=replace(target(), questions=shared))[1]
    assert (report.unmatched, report.imported) == (1, 1)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not readable as JSON"),
        ("[1]", "not a JSON object"),
        ({"question_id": "2+2"}, "no response"),
        ({"response": "2+2=4"}, "nothing names its question"),
        (
            {"question_id": "2+2", "response": [{"role": "tool", "content": "4"}]},
            "one assistant message after its prompt, or several",
        ),
        ({"question_id": "2+2", "messages": [{"role": "user"}]}, "messages {role, content}"),
        ({"question_id": "2+2", "response": ""}, "the response is empty"),
        ({"question_id": "2+2", "response": "4<|im_start|>user"}, "the special token <|im_start|>"),
        ({"question_id": "2+2", "token_ids": []}, "flat list|at least one"),
        ({"question_id": "2+2", "token_ids": [1.5]}, "flat list of int64"),
        ({"question_id": "2+2", "token_ids": [True]}, "flat list of int64"),
        ({"question_id": "2+2", "token_ids": [[1], [2, 3]]}, "flat list of int64"),
        ({"question_id": "2+2", "token_ids": [-1]}, "ids 0..2"),
        ({"question_id": "2+2", "token_ids": [5000]}, "outside the tokenizer's 290"),
        ({"question_id": "2+2", "token_ids": [1, 2], "log_probs": [-1.0]}, "1 log_probs and 2 token_ids"),
        ({"question_id": "2+2", "token_ids": [1], "log_probs": [0.5]}, "not above 0"),
        ({"question_id": "2+2", "token_ids": [1], "log_probs": ["x"]}, "flat list of float32"),
        ({"question_id": "2+2", "token_ids": [1], "mask": [False]}, "no token that the model wrote"),
        ({"question_id": "2+2", "token_ids": [1], "mask": [1]}, "flat list of bool"),
        ({"question_id": "2+2", "response": "4\ud83d"}, "half a character"),
        ({"question_id": "2+2", "response": ["=4", "2=4"]}, "list of messages {role, content}; got '=4'"),
        ({"question_id": "2+2", "messages": [ANSWER | {"reasoning_content": "hm"}]}, "messages have reasoning_content"),
        ({"question_id": ["2+2"], "response": "=4"}, "nothing names its question"),
        (GOOD | {"source": 3}, "source must be text"),
        (GOOD | {"source": "s" * 201}, "source must be text of at most 200 characters"),
        (GOOD | {"source": "\ud83d"}, "half a character"),
        (GOOD | {"birth_step": -1}, r"birth_step must be an integer in 0..2147483647; got -1\."),
        (GOOD | {"temperature": -0.5}, "temperature must be a number from 0 on"),
        (GOOD | {"latest_count": -1}, "latest_count must be an integer in 0..32767"),
        (GOOD | {"group_size": 40_000}, "group_size must be an integer in 0..32767"),
        (GOOD | {"group_size": 4, "group_successes": 5}, "5 group_successes of group_size 4"),
        (GOOD | {"behaviour": "read"}, "behaviour must be"),
        (GOOD | {"birth_step": 1.5}, "birth_step must be an integer"),
        (GOOD | {"advantage": "x"}, "advantage must be a number"),
        (GOOD | {"prompt_hash": "xyz"}, "prompt_hash must be hexadecimal"),
        ({"question_id": "2+2", "token_ids": [5], "tokenizer": "another"}, "another tokenizer's"),
    ],
)
def test_a_bad_row_ends_an_import_by_file_and_line_or_is_counted(tmp_path, row, reason):
    path = write(tmp_path / "a.jsonl", GOOD, row, {"question_id": "1+3", "response": "=4"})
    with pytest.raises(BadTrace, match=reason) as bad:
        imported(path)
    assert str(bad.value).startswith(f"{path}, line 2: ")
    buffer, report = imported(path, skip_bad=True)
    assert [found.question for found in stored(buffer)] == ["2+2", "1+3"]
    assert (report.read, report.bad) == (3, 1)
    assert report.bad_rows[0].startswith(f"{path}, line 2: ")


def test_a_question_that_was_asked_within_a_conversation_is_another_one(tmp_path):
    before = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = write(tmp_path / "a.jsonl", {"messages": [*before, *row_of("2+2")["prompt"], ANSWER]})
    assert imported(path)[1].unmatched == 1


def test_ids_that_pandas_made_floats_of_are_found(tmp_path):
    """As it does with a column of integers where one is missing."""
    path = write(
        tmp_path / "a.parquet", GOOD | {"question_id": 7}, GOOD | {"question_id": None, "prompt": "What is 1+3?"}
    )
    questions = Questions({question: row_of(question) for question in ("7", "1+3")})
    buffer, _ = imported(path, on=replace(target(), questions=questions))
    assert [found.question for found in stored(buffer)] == ["7", "1+3"]


def test_a_compressed_file_is_read_and_a_torn_one_named(tmp_path):
    path = tmp_path / "expert.jsonl.gz"
    path.write_bytes(gzip.compress(write(tmp_path / "plain.jsonl", GOOD, GOOD | {"question_id": "1+3"}).read_bytes()))
    assert Source(path).count() == 2
    assert dict(imported(path)[1].sources) == {"expert": 2}
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(SourceError, match=r"expert.jsonl.gz: cannot be read after line"):
        imported(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_a_file_in_another_encoding_is_refused(tmp_path, encoding):
    path = tmp_path / "a.jsonl"
    path.write_bytes((json.dumps(GOOD | {"response": "é=4"}, ensure_ascii=False) + "\n").encode(encoding))
    with pytest.raises(BadTrace, match=r"line 1: not readable as JSON .* one object on each line, in UTF-8"):
        imported(path)


def test_a_file_with_nothing_in_it_is_refused(tmp_path):
    for text in ("", "\n \n"):
        (tmp_path / "a.jsonl").write_text(text)
        with pytest.raises(SourceError, match="there is nothing in it"):
            imported(tmp_path / "a.jsonl")


def test_a_line_over_the_limit_is_a_bad_row_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("recipe.exgrpo.experience.sources.MAX_LINE", 1 << 20)
    path = write(tmp_path / "a.jsonl", GOOD | {"response": "0" * (3 << 20) + "=4"}, GOOD | {"question_id": "1+3"})
    assert Source(path).count() == 2
    buffer, report = imported(path, skip_bad=True)
    assert [found.question for found in stored(buffer)] == ["1+3"]
    assert report.bad_rows == [f"{path}, line 1: longer than 1 MB."]


def test_of_a_text_without_end_only_the_beginning_is_tokenised(tmp_path):
    """Merging ten megabytes without a space takes minutes; `longest` is what a token stands for at the most."""
    asked = []

    class Spy(Renderer):
        def __init__(self):
            super().__init__(TOKENIZER)
            self.tokenizer = lambda texts, **_: asked.extend(texts) or TOKENIZER(texts, **_)
            self.tokenizer.__dict__.update(eos_token=TOKENIZER.eos_token, eos_token_id=TOKENIZER.eos_token_id,
                                           get_vocab=TOKENIZER.get_vocab, decode=TOKENIZER.decode,
                                           apply_chat_template=TOKENIZER.apply_chat_template)  # fmt: skip

    path = write(tmp_path / "a.jsonl", {"question_id": "2+2", "response": "0" * 10_000_000})
    renderer = Spy()
    assert imported(path, on=target(renderer=renderer))[1].overlong == 1
    longest = max(map(len, TOKENIZER.get_vocab()))
    assert [len(text) for text in asked] == [(target().max_response + 1) * longest]
    assert renderer.response_ids(["0" * 50], row_of("2+2")["prompt"], 32)[0].tolist() == ids_of("0" * 50)


@pytest.mark.parametrize("words", ["答案是二加二", "‮الجواب", "nai\u0308ve", "четыре 😀", "ก็คือ\u0e33"])
def test_traces_in_any_language_decode_to_what_was_written(tmp_path, words):
    path = write(tmp_path / "a.jsonl", {"prompt": "What is 2+2?", "response": f"{words}=4"})
    on = target(max_response=64)
    (found,) = stored(imported(path, on=on)[0])
    assert on.renderer.text(found.token_ids) == unicodedata.normalize(
        "NFC", f"{words}=4"
    )  # as the toy's tokenizer does


def test_bad_rows_of_parquet_are_named_by_their_number(tmp_path):
    path = write(tmp_path / "a.parquet", GOOD, {"question_id": "2+2", "response": None})
    with pytest.raises(BadTrace, match="row 2: no response"):
        imported(path)


def test_what_is_no_source_is_said_by_its_name(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 torn")
    for name, reason in (
        ("x.csv", r"traces come as .jsonl"),
        ("y.jsonl", "no such file"),
        (".", "no experience state"),
    ):
        with pytest.raises(SourceError, match=reason):
            Source(tmp_path / name)
    with pytest.raises(SourceError, match="cannot be read as parquet"):
        imported(tmp_path / "x.parquet")


def test_a_file_cannot_make_a_source_of_every_row(tmp_path, monkeypatch):
    monkeypatch.setattr("recipe.exgrpo.experience.importing.MAX_ORIGINS", 2)
    rows = [{"question_id": "2+2", "response": f"{i}=4", "source": f"s{i}"} for i in range(3)]
    with pytest.raises(BadTrace, match="more than 2 different sources"):
        imported(write(tmp_path / "a.jsonl", *rows))


# ---- turns of tools

CALL = {"role": "assistant", "content": "<tool_call>2+2"}
TOOL = {"role": "tool", "content": "4"}


def test_what_a_tool_said_is_in_the_response_and_not_the_models(tmp_path):
    """By hand, from the toy's template: the end of turn is the model's, what stands around the tool's words is not."""
    path = write(tmp_path / "a.jsonl", {"messages": [SYSTEM, *row_of("2+2")["prompt"], CALL, TOOL, ANSWER]})
    (found,) = stored(imported(path, on=target(max_response=100))[0])
    parts = [
        (ids_of("<tool_call>2+2"), True),
        (TOKENIZER("\n<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n")["input_ids"], False),
        (ids_of("2+2=4"), True),
    ]
    assert found.token_ids.tolist() == [i for ids, _ in parts for i in ids]
    assert found.mask.tolist() == [own for ids, own in parts for _ in ids]
    assert found.prompt_ids.tolist() == prompt_of("2+2")
    assert found.turns == 4
    np.testing.assert_array_equal(
        found.log_probs[found.mask], rated([(found.prompt_ids, found.token_ids)])[0][found.mask]
    )


def test_the_reward_is_shown_what_the_model_wrote_as_the_runs_reward_manager_does(tmp_path):
    """A tool's right answer is none of the model's."""
    told = []
    spy = target(function=lambda solution_str, **_: told.append(solution_str) or 1.0, max_response=100)
    path = write(tmp_path / "a.jsonl", {"messages": [*row_of("2+2")["prompt"], CALL, TOOL, ANSWER]})
    buffer, _ = imported(path, on=spy)
    rows, decode = {"2+2": row_of("2+2")}, lambda ids: TOKENIZER.decode(ids, skip_special_tokens=True)
    list(regrade(stored(buffer), rows, decode, lambda *_, **__: told.append(_[1]) or {"score": 1.0}))
    assert told == ["<tool_call>2+2\n2+2=4"] * 2


def test_a_response_in_turns_is_as_verls_agent_loop_has_it():
    """Its own builder, step by step, with several tools in a row."""
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    builder = create_continuous_token_builder(TOKENIZER, hf_model_type="qwen2")
    messages, other = row_of("2+2")["prompt"], {"role": "tool", "content": "naïve"}
    start = builder.build_initial_tokens(messages)
    called = builder.merge_assistant_tokens(start, ids_of("<tool_call>2+2")).token_ids
    said = [*messages, CALL]
    told = builder.merge_context_tokens(said, [*said, TOOL, other], called).token_ids
    whole = builder.merge_assistant_tokens(told, ids_of("2+2=4")).token_ids
    ids, mask = Renderer(TOKENIZER, model_type=lambda: "qwen2").turn_ids([CALL, TOOL, other, ANSWER], messages, 100)
    assert ids.tolist() == whole[len(start) :]
    assert int(mask.sum()) == len(ids_of("<tool_call>2+2") + ids_of("2+2=4"))


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([CALL, TOOL], "one assistant message after its prompt, or several"),
        ([CALL, ANSWER], "one assistant message after its prompt, or several"),
        ([CALL, TOOL | {"content": "4<|im_end|>"}, ANSWER], "the special token <|im_end|>"),
        ([CALL | {"content": "<|im_start|>"}, TOOL, ANSWER], "the special token <|im_start|>"),
        ([CALL | {"content": None, "tool_calls": [{"function": {}}]}, TOOL, ANSWER], "messages have tool_calls"),
    ],
)
def test_turns_that_are_none_are_refused(tmp_path, turns, reason):
    path = write(tmp_path / "a.jsonl", {"messages": [*row_of("2+2")["prompt"], *turns]})
    with pytest.raises(BadTrace, match=reason):
        imported(path)


def test_a_stored_response_with_a_tools_words_is_not_tokenised_anew_as_the_models(tmp_path):
    row = {"question_id": "2+2", "token_ids": ids_of("2=4"), "mask": [False, True, True, True], "text": "2=4"}
    with pytest.raises(BadTrace, match="no text of the model alone"):
        imported(write(tmp_path / "a.jsonl", row | {"tokenizer": "another"}))
    assert imported(write(tmp_path / "b.jsonl", row))[1].imported == 1


# ---- log-probs


def test_log_probs_that_come_with_a_trace_are_kept(tmp_path):
    ids = ids_of("2+2=4")
    given = [-0.25 * (i + 1) for i in range(len(ids))]
    path = write(tmp_path / "a.jsonl", {"question_id": "2+2", "token_ids": ids, "log_probs": given}, GOOD)
    for importance in ("scored", "none"):
        (found,) = stored(imported(path, importance=importance)[0])
        np.testing.assert_allclose(found.log_probs, given)
        assert found.origin.behaviour == "measured"


def test_without_a_behaviour_policy_pi_past_is_one(tmp_path):
    buffer, report = imported(write(tmp_path / "a.jsonl", GOOD), importance="none", score=None)
    (found,) = stored(buffer)
    np.testing.assert_array_equal(np.exp(found.log_probs), np.ones(len(found.token_ids)))
    assert (found.origin.behaviour, report.one, report.scored) == ("one", 1, 0)
    with pytest.raises(ValueError, match="needs a model"):
        imported(importance="scored", score=None)


def test_scores_go_to_their_own_traces_and_failures_cost_none(tmp_path):
    asked = []
    rows = [
        {"question_id": q, "response": f"{'0' * i}={a}"}
        for i, (q, a) in enumerate([("2+2", 4), ("1+3", 5), ("3+1", 4)])
    ]
    buffer, _ = imported(write(tmp_path / "a.jsonl", *rows), score=lambda pairs: asked.extend(pairs) or rated(pairs))
    assert [ids.tolist() for _, ids in asked] == [ids_of("=4"), ids_of("00=4")]
    for found in stored(buffer):
        np.testing.assert_array_equal(found.log_probs, rated([(found.prompt_ids, found.token_ids)])[0])


# ---- another run's state


def trained(folder, tokenizer=TOKENIZER, prompt=None):
    """A checkpoint of a run: a group of two successes, another question, a failure, something retired."""
    buffer = ExperienceBuffer(8)
    buffer.origin = Origin("rollout", "template", 0.6)
    group = Provenance(buffer.new_group(), successes=2, size=8, advantage=0.75)
    for question, texts, count in (("2+2", ("2+2=4", "=4"), 2), ("1+3", ("1+3=4", "1+3=5"), 6)):
        buffer.record(question, count)
        for text in texts:
            ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            log_probs = -0.125 * np.arange(1, len(ids) + 1)
            response = Response(ids, log_probs, prompt_ids=prompt or prompt_of(question))
            buffer.add(question, response, float(text.endswith("=4")), 30, provenance=group)
        group = Provenance(buffer.new_group(), successes=6, size=8, advantage=0.25)
    buffer.retire("3+1")
    fingerprint = {"tokenizer": tokenizer_fingerprint(tokenizer), "group_size": 8, "policy": "exgrpo"}
    ExperienceCheckpointer(fingerprint).save(folder, buffer, {})
    tokenizer.save_pretrained(folder / "actor" / "huggingface")
    return folder


def test_another_runs_checkpoint_brings_log_probs_groups_and_counts(tmp_path):
    folder = trained(tmp_path / "run" / "global_step_40")
    buffer, report = imported(folder, on=target(born=0))
    assert (report.read, report.failures, report.measured, report.scored) == (4, 1, 3, 0)
    first, second, third = stored(buffer)
    assert first.provenance == second.provenance == Provenance(0, 2, 8, 0.75)
    assert third.provenance == Provenance(1, 6, 8, 0.25)
    np.testing.assert_allclose(first.log_probs, -0.125 * np.arange(1, len(first.token_ids) + 1))
    assert first.origin == Origin("run/global_step_40", target().chat_template, 0.6)
    assert (first.birth_step, first.use_count) == (0, 0)
    assert [buffer.latest_count(q) for q in ("2+2", "1+3", "3+1")] == [1, 3, None]  # of 4, not of 8
    assert not buffer.is_retired("3+1")


def test_log_probs_on_another_prompt_are_missing(tmp_path):
    folder = trained(tmp_path / "global_step_40", prompt=[1, 2, 3])
    buffer, report = imported(folder)
    assert (report.measured, report.scored) == (0, 3)
    for found in stored(buffer):
        np.testing.assert_array_equal(found.log_probs, rated([(found.prompt_ids, found.token_ids)])[0])


@pytest.fixture
def other():
    """A tokenizer of single characters: other ids for the same text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(set("0123456789+=What is?\nusrant<|_>mdep"))
    vocabulary = {c: i for i, c in enumerate(["<eos>", "<unk>", *alphabet])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", unk_token="<unk>")


def test_under_another_tokenizer_text_is_tokenised_anew_without_log_probs(tmp_path, other):
    folder = trained(tmp_path / "global_step_40", tokenizer=other)
    buffer, report = imported(folder)
    assert (report.imported, report.scored, report.measured) == (3, 3, 0)
    assert [found.token_ids.tolist() for found in stored(buffer)] == [ids_of(t) for t in ("2+2=4", "=4", "1+3=4")]


def test_another_tokenizers_state_without_that_tokenizer_is_refused(tmp_path, other):
    folder = trained(tmp_path / "global_step_40", tokenizer=other)
    shutil.rmtree(folder / "actor")
    with pytest.raises(BadTrace, match="trajectory 0: its token ids are another tokenizer's"):
        imported(folder)


# ---- out and in again


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_exported_comes_back_as_it_was(tmp_path, suffix):
    """Ids, log-probs, rewards, provenance, sources, counts, order; failures, masks and birth steps included."""
    state = trained(tmp_path / "global_step_40")
    buffer, _ = imported(state, keep_failures=True)
    masked = Response(ids_of("2=4"), [0, -0.5, -0.5, -0.5], [False, True, True, True], prompt_of("3+1"))
    buffer.origin = Origin("tool", target().chat_template, 0.7, "one")
    buffer.add("3+1", masked, 1.0, 9, provenance=Provenance(buffer.new_group(), 1, 8, 0.875), keep_prompt=True)
    handles = buffer.candidates().row.tolist()
    rows = table.rows_of(buffer, handles, None, target().tokenizer)
    path = tmp_path / f"all{suffix}"
    if suffix == ".parquet":
        assert table.write_parquet(path, rows, table.schema(decoded=False)) == 5
    else:
        assert table.write_jsonl(path, rows) == 5
    again, report = imported(path, keep_failures=True, importance="none")
    assert report.imported == 5
    (arrays, meta), (found, found_meta) = buffer.state(), again.state()
    assert meta["origins"][: len(found_meta["origins"])] == found_meta["origins"]
    found["log_probs"], arrays["log_probs"] = (np.nan_to_num(x["log_probs"], nan=7) for x in (found, arrays))
    for name in ("row_serial", "row_length", "row_prompt_length", "row_reward", "row_birth_step", "row_group",
                 "row_group_successes", "row_group_size", "row_advantage", "row_origin", "row_prompt_hash", "token_ids",
                 "question_names", "question_count"):  # fmt: skip
        np.testing.assert_array_equal(found[name], arrays[name], err_msg=name)
    np.testing.assert_array_equal(found["log_probs"][:-4], arrays["log_probs"][:-4])
    assert [t.mask.tolist() for t in stored(again)] == [t.mask.tolist() for t in stored(buffer)]


def test_progress_is_heard_of_every_trace_whatever_becomes_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr("recipe.exgrpo.experience.importing.CHUNK", 2)
    source = Source(write(tmp_path / "a.jsonl", GOOD, "{", {"prompt": "9?", "response": "1"}, GOOD, GOOD))
    heard, settings = [], ExperienceConfig(skip_bad=True)
    Importer(target(), ExperienceBuffer(K), settings, rated).read(source, advance=heard.append)
    assert heard == [2, 2, 1]
    assert sum(heard) == source.count()


def test_a_report_is_json_and_adds_up(tmp_path):
    rows = [GOOD, GOOD, {"question_id": "1+3", "response": "=5"}, {"prompt": "9?", "response": "1"}, "{"]
    report = imported(write(tmp_path / "a.jsonl", *rows), skip_bad=True)[1]
    found = json.loads(json.dumps(report.as_dict()))
    fates = ("imported", "bad", "unmatched", "overlong", "failures", "not_graded", "duplicates", "retired")
    assert sum(found[name] for name in fates) == found["read"] == 5
    assert found["traces_per_second"]["without_grading"] >= found["traces_per_second"]["all"] > 0


def test_masks_and_tools_come_back_from_an_export(tmp_path):
    """A row of a file has both; a run with other tools takes none of what they wrote."""
    tools = ToolSetup("tool_agent", {"f": {"name": "f"}})
    buffer, mask = ExperienceBuffer(K), [True, True, False, False, True]
    buffer.record("2+2", 2)
    buffer.origin = Origin("rollout", target().chat_template, 1.0, tools=tools.fingerprint)
    ids = [*TOKENIZER("2+2", add_special_tokens=False)["input_ids"][:2], 7, 8, ids_of("=4")[-1]]
    response = Response(ids, [-0.5, -0.25, 0.0, 0.0, -1.0], mask, prompt_of("2+2"))
    buffer.add("2+2", response, 1.0, 3, keep_prompt=True)
    rows = list(table.rows_of(buffer, buffer.candidates().row, None, target().tokenizer))
    path = write(tmp_path / "all.jsonl", *rows)
    on = target(tools=tools, function=lambda *_, **__: {"score": 1.0})
    (found,) = stored(imported(path, on=on)[0])
    assert (found.mask.tolist(), found.log_probs.tolist()) == (mask, [-0.5, -0.25, 0.0, 0.0, -1.0])
    assert found.origin.tools == tools.fingerprint != ""
    with pytest.raises(BadTrace, match=r"line 1: it was collected with other tools.*rollout\.multi_turn"):
        imported(path, on=target())
