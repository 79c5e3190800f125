"""data/prepare_train.py: what is written, what is dropped, what is reported, and how bad input is refused."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import prepare_train
from data.errors import DataError, exit_with_sentence
from data.records import Record, lookup, question_id
from data.sources import HubSource

REPO = Path(__file__).resolve().parents[2]
QUESTION = "Ann has {} apples and gives away two of them to her friends at school today, how many are left?"
ROWS = [{"question": QUESTION.format(i), "answer": f"She has {i}-2={i - 2}.\n#### {i - 2}"} for i in range(3, 23)]


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Runs the script; returns its exit code, the rows written and the manifest."""

    def run(*arguments: str, out: str = "out.parquet", dataset: str = "gsm8k"):
        path = tmp_path / "written" / out
        command = ["prepare_train.py", "--dataset", dataset, "--template", "qwen_boxed", "--out", str(path)]
        monkeypatch.setattr(sys, "argv", [*command, *map(str, arguments)])
        try:
            exit_with_sentence(prepare_train.main)
        except SystemExit as ending:
            return ending.code, None, None
        manifest = json.loads(path.with_suffix(".manifest.json").read_text())
        return 0, pq.read_table(path).to_pylist(), manifest

    return run


@pytest.fixture
def custom(prepare, tmp_path):
    """Prepares rows given as {"q": ..., "a": ...}."""

    def run(rows: list, *arguments: str):
        source = write_jsonl(tmp_path / "rows.jsonl", rows)
        keys = ["--source", str(source), "--question-key", "q", "--answer-key", "a"]
        return prepare(*keys, *arguments, dataset="custom")

    return run


def test_rows_are_in_verls_schema(prepare, tmp_path):
    source = write_jsonl(tmp_path / "train.jsonl", ROWS)
    code, rows, manifest = prepare("--source", source)
    assert (code, len(rows), manifest["rows"], manifest["rows_read"]) == (0, 20, 20, 20)
    assert rows[1] == {
        "data_source": "gsm8k",
        "prompt": [
            {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
            {"role": "user", "content": QUESTION.format(4)},
        ],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {
            "split": "train",
            "index": 1,
            "question_id": question_id(QUESTION.format(4), "2"),
            "think_format": False,
        },
    }


def test_the_manifest_identifies_source_and_output(prepare, tmp_path):
    source = write_jsonl(tmp_path / "train.jsonl", ROWS)
    _, _, manifest = prepare("--source", source)
    out = tmp_path / "written" / "out.parquet"
    assert manifest["source"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert manifest["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (manifest["template"], manifest["data_source"]) == ("qwen_boxed", "gsm8k")


def test_traces_are_the_data_sets_own_solutions(prepare, tmp_path):
    source = write_jsonl(tmp_path / "train.jsonl", ROWS)
    code, rows, manifest = prepare("--source", source, "--traces", tmp_path / "traces.parquet")
    traces = pq.read_table(tmp_path / "traces.parquet").to_pylist()
    assert (code, manifest["traces"]["rows"], len(traces)) == (0, 20, 20)
    for row, raw, trace in zip(rows, ROWS, traces, strict=True):
        expected = {"question_id": row["extra_info"]["question_id"], "response": raw["answer"], "source": "gsm8k-own"}
        assert trace == expected


def test_openr1s_target_column_becomes_traces(tmp_path, monkeypatch):
    """The released file's form: chat messages as prompt, one assistant message as target, which some rows may lack."""
    target = [{"role": "assistant", "content": "<think>\n1+1 </think>\n \\boxed{2}"}]
    rows = [
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": f"What is 1+{i}?"}],
         "reward_model": {"style": "rule", "ground_truth": str(1 + i)}, "target": target if i != 2 else None}
        for i in (1, 2, 3)
    ]  # fmt: skip
    source, out = write_jsonl(tmp_path / "openr1.jsonl", rows), tmp_path / "o.parquet"
    arguments = ["--dataset", "openr1_math_46k", "--source", source, "--out", out, "--traces", tmp_path / "t.parquet"]
    monkeypatch.setattr(sys, "argv", ["prepare_train.py", *map(str, arguments)])
    prepare_train.main()
    found = pq.read_table(tmp_path / "t.parquet").to_pylist()
    ids = [row["extra_info"]["question_id"] for row in pq.read_table(out).to_pylist()]
    assert [(row["question_id"], row["response"]) for row in found] == [(ids[i], target[0]["content"]) for i in (0, 2)]


def test_traces_where_there_are_none_are_refused(prepare, tmp_path):
    source = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "What is 1+1?", "solution": "2"}])
    code, *_ = prepare("--source", source, "--dataset", "dapo_math_17k", "--traces", tmp_path / "t.parquet")
    assert code == 2
    assert not (tmp_path / "t.parquet").exists()


def test_same_input_same_bytes(prepare, tmp_path):
    source = write_jsonl(tmp_path / "train.jsonl", ROWS)
    prepare("--source", source, out="a.parquet")
    prepare("--source", source, out="b.parquet")
    written = tmp_path / "written"
    assert (written / "a.parquet").read_bytes() == (written / "b.parquet").read_bytes()
    a, b = (json.loads((written / f"{name}.manifest.json").read_text()) for name in "ab")
    assert a | {"file": ""} == b | {"file": ""}


def test_question_ids_do_not_depend_on_order_template_or_run(prepare, tmp_path):
    _, rows, _ = prepare("--source", write_jsonl(tmp_path / "train.jsonl", ROWS))
    _, turned, _ = prepare("--source", write_jsonl(tmp_path / "train.jsonl", ROWS[::-1]), "--template", "plain")
    ids = [row["extra_info"]["question_id"] for row in rows]
    assert ids == [row["extra_info"]["question_id"] for row in turned][::-1]
    assert len(set(ids)) == 20
    assert question_id("What is  1+1?", "2 ") == question_id("What\nis 1+1? ", "2")
    assert question_id("What is 1+1?", "2") == "c5db44e13cc63769a93670b8de90bcf0"  # fixed: buffers are keyed by it


def test_drops_are_counted_by_reason(custom):
    rows = [
        {"q": "one plus one", "a": "2"},
        {"q": " one  plus\none ", "a": "2"},
        {"q": "one plus one", "a": "3"},
        {"q": "", "a": "2"},
        {"q": "nothing", "a": " "},
        {"q": "null", "a": None},
        {"q": "long " * 2000, "a": "2"},
        {"q": "giant", "a": "9" * 2000},
        {"q": "blank mathematics", "a": "$$"},
        {"q": "empty text", "a": r"\text{}"},
        {"q": "a list", "a": "1, 2"},
        {"q": "a number", "a": 2.5},
    ]
    code, written, manifest = custom(rows)
    assert code == 0
    assert [row["reward_model"]["ground_truth"] for row in written] == ["2", "1, 2", "2.5"]
    assert manifest["dropped"] == {
        "answer unverifiable": 1,
        "duplicate": 1,
        "duplicate with another answer": 1,
        "empty answer": 2,
        "empty question": 1,
        "placeholder answer": 2,
        "prompt over the limit": 1,
    }
    assert manifest["conflicting_duplicates"] == [{"kept": 0, "dropped": 2, "answers": ["2", "3"]}]
    assert manifest["gold_answers"]["answers"]["unverifiable"] == ["9" * 2000]
    assert manifest["rows"] + sum(manifest["dropped"].values()) == manifest["rows_read"] == len(rows)


PLACEHOLDERS = (
    "proof",
    "notfound",
    "None",
    "N/A",
    "TBD",
    "nan",
    float("nan"),
    "Not found.",
    r"\text{Proof}",
    "null",
    "?",
)
ANSWERS = ("no solution", "Na", "DNE", r"\emptyset", "None of the above", "undefined", 0)


def test_placeholders_are_dropped_with_a_count(custom, capsys):
    golds = [*PLACEHOLDERS, *ANSWERS]
    code, rows, manifest = custom([{"q": f"question {i}", "a": gold} for i, gold in enumerate(golds)])
    assert code == 0
    assert [row["reward_model"]["ground_truth"] for row in rows] == list(map(str, ANSWERS))
    assert manifest["dropped"] == {"placeholder answer": len(PLACEHOLDERS)}
    assert f"dropped {len(PLACEHOLDERS)}: placeholder answer" in capsys.readouterr().out


def test_a_file_of_placeholders_leaves_nothing(custom, capsys):
    assert custom([{"q": "prove it", "a": "proof"}])[0] == 2
    assert "no question is left of 1 rows ({'placeholder answer': 1" in capsys.readouterr().err


def test_answers_that_equal_only_their_own_text_are_kept_and_listed(custom):
    _, rows, manifest = custom([{"q": "why", "a": "np.arcsin(10/13)"}, {"q": "how many", "a": "1"}])
    assert len(rows) == 2
    assert manifest["gold_answers"]["counts"]["equal only as text"] == 1


def test_contamination_is_reported_by_exact_and_13_gram_match(prepare, tmp_path):
    evaluation = tmp_path / "eval"
    evaluation.mkdir()
    shared = " ".join(QUESTION.format(5).split()[3:16])  # 13 words, without the number
    write_jsonl(evaluation / "bench.jsonl", [{"problem": QUESTION.format(4).upper()}, {"problem": f"Bob {shared}."}])
    write_jsonl(evaluation / "other.jsonl", [{"problem": "twelve words are not enough to be a match of any kind"}])
    source = write_jsonl(tmp_path / "train.jsonl", [*ROWS, {"question": "unrelated", "answer": "#### 1"}])
    _, rows, manifest = prepare("--source", source, "--eval-dir", evaluation)
    found = manifest["contamination"]
    assert found["bench"]["exact"] == [rows[1]["extra_info"]["question_id"]]
    assert len(found["bench"]["13-gram"]) == 20
    assert found["other"] == {"exact": [], "13-gram": []}


def test_prompt_limit_with_a_tokenizer_counts_the_rendered_prompt(custom, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    chat = "{% for m in messages %}{{ m['content'] }} {% endfor %}go"
    PreTrainedTokenizerFast(tokenizer_object=words, chat_template=chat).save_pretrained(tmp_path / "tokenizer")
    rows = [{"q": "w " * 9, "a": "1"}, {"q": "w " * 10, "a": "1"}]
    arguments = ("--template", "plain", "--tokenizer", str(tmp_path / "tokenizer"), "--max-prompt-tokens", "10")
    _, written, manifest = custom(rows, *arguments)
    assert len(written) == 1
    assert manifest["prompt"]["longest_kept"] == 10
    assert manifest["dropped"] == {"prompt over the limit": 1}


def as_csv(path: Path) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["question", "answer"])
        writer.writeheader()
        writer.writerows(ROWS)
    return path


SOURCES = {
    "jsonl": lambda path: write_jsonl(path / "rows.jsonl", ROWS),
    "json": lambda path: Path(path / "rows.json").write_text(json.dumps(ROWS)) and path / "rows.json",
    "csv": lambda path: as_csv(path / "rows.csv"),
    "parquet": lambda path: (
        datasets.Dataset.from_list(ROWS).to_parquet(path / "rows.parquet") and path / "rows.parquet"
    ),
    "saved folder": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path / "saved") or path / "saved",
    "saved splits": lambda path: (
        datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(path / "splits") or path / "splits"
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_local_source_gives_the_same_rows(kind, prepare, tmp_path):
    code, rows, _ = prepare("--source", SOURCES[kind](tmp_path))
    assert code == 0
    assert [row["reward_model"]["ground_truth"] for row in rows] == [str(i) for i in range(1, 21)]


def test_the_hub_path_loads_through_datasets(prepare, tmp_path, monkeypatch):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    local_hub = prepare_train.TRAINING_SETS["gsm8k"]
    chosen = {"gsm8k": type(local_hub)("gsm8k", "own/hub", local_hub.read)}
    monkeypatch.setattr(prepare_train, "TRAINING_SETS", chosen)
    load = datasets.load_dataset
    asked = []

    def from_folder(hub_id, config, **kwargs):
        asked.append((hub_id, config, kwargs))
        return load("json", data_files={"train": str(tmp_path / "train.jsonl")}, split=kwargs["split"])

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    code, rows, manifest = prepare("--revision", "abc")
    assert (code, len(rows)) == (0, 20)
    assert asked == [("own/hub", None, {"split": "train", "revision": "abc"})]
    assert manifest["source"] == {"hub_id": "own/hub", "config": None, "split": "train", "revision": "abc"}


def test_a_repository_is_read_by_the_real_loader(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    rows = list(HubSource(str(tmp_path)).rows())
    assert [row["question"] for _, row in rows] == [row["question"] for row in ROWS]
    assert rows[0][0] == f"{tmp_path}, row 1"
    with pytest.raises(DataError, match="cannot be loaded"):
        HubSource(str(tmp_path), split="nowhere").rows()


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path):
    command = [sys.executable, "data/prepare_train.py", "--dataset", "gsm8k", "--out", str(tmp_path / "o.parquet")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: openai/gsm8k: the data set cannot be loaded (")
    assert not (tmp_path / "o.parquet").exists()


def test_known_formats(prepare, tmp_path):
    openr1 = {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "one?"}]}
    openr1 |= {"reward_model": {"ground_truth": "1"}, "target": [{"content": "<think>never used"}]}
    math = {"problem": "two?", "solution": r"So \boxed{\frac{4}{2}}.", "level": "Level 4"}
    dapo = {"prompt": "three?", "solution": "3"}
    wrapped = (
        "Solve the following math problem step by step. The last line is the answer.\n\nfour?\n\n"
        'Remember to put your answer on its own line after "Answer:".'
    )
    released = {"prompt": [{"role": "user", "content": wrapped}], "reward_model": {"ground_truth": "4"}}
    cases = [
        ("openr1_math_46k", [openr1], [("one?", "1")]),
        ("math_l3-5", [math, math | {"problem": "easy?", "level": "Level 2"}], [("two?", r"\frac{4}{2}")]),
        ("dapo_math_17k", [dapo, released], [("three?", "3"), ("four?", "4")]),
        ("gsm8k", [{"question": "many?", "answer": "#### 1,234"}], [("many?", "1234")]),
    ]
    for dataset, source, expected in cases:
        _, rows, _ = prepare("--source", write_jsonl(tmp_path / "x.jsonl", source), dataset=dataset)
        assert [(row["prompt"][-1]["content"], row["reward_model"]["ground_truth"]) for row in rows] == expected


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"question": "a", "answer": "#### 1"}\n{"question": \n', "bad.jsonl, line 2: not valid JSON"),
        ('{"question": "a", "answer": "#### 1"}\n[1]\n', "bad.jsonl, line 2: must be a JSON object, not list"),
        ('{"answer": "#### 1"}\n', "bad.jsonl, line 1: no key 'question'; the row has answer"),
        ('{"question": ["a", "b"], "answer": "1"}\n', "line 1: key 'question' must hold text or a number, not list"),
        ('{"question": true, "answer": "1"}\n', "line 1: key 'question' must hold text or a number, not bool"),
        ("\n\n", "no question is left of 0 rows"),
        ('{"question": "a", "answer": "none"}\n', "no question is left of 1 rows"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(content, sentence, prepare, tmp_path, capsys):
    content = content.replace('"answer": "none"', '"answer": "#### "')
    (tmp_path / "bad.jsonl").write_text(content)
    code, _, _ = prepare("--source", tmp_path / "bad.jsonl")
    assert code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert sentence in lines[0]
    assert not (tmp_path / "written").exists() or list((tmp_path / "written").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.jsonl", b'{"question": "\xff"}', "x.jsonl, line 1: not UTF-8 text"),
        ("x.json", b'{"question": "a"}', "x.json: must be a list of objects, not dict"),
        ("x.json", b"[1]", "x.json, row 1: must be a JSON object, not int"),
        ("x.json", b"[" * 100_000, "x.json: not valid JSON"),
        ("x.csv", b"question,answer\na\n", "x.csv, line 2: the number of fields differs from the header's 2"),
        ("x.csv", b'question,answer\n"a,1\n', "x.csv, line 2: not valid CSV"),
        ("x.parquet", b"PAR1 not really", "x.parquet: not a readable parquet file"),
        ("x.txt", b"a", "must be one of .jsonl, .json, .csv, .parquet"),
    ],
)
def test_unreadable_files_are_named(name, content, sentence, prepare, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    assert prepare("--source", tmp_path / name)[0] == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dataset", "arguments", "sentence"),
    [
        ("gsm8k", ["--source", "missing.jsonl"], "missing.jsonl: there is no such file or folder"),
        ("gsm8k", ["--source", "/no/such/place"], "/no/such/place: there is no such file or folder"),
        ("gsm8k", ["--source", "x", "--question-key", "q"], "go with --dataset custom"),
        ("custom", ["--source", "x.jsonl"], "--dataset custom needs --source, --question-key and --answer-key"),
        ("gsm8k", ["--source", str(REPO)], "not a folder written by Dataset.save_to_disk"),
    ],
)
def test_bad_arguments(dataset, arguments, sentence, prepare, capsys):
    assert prepare(*arguments, dataset=dataset)[0] == 2
    assert sentence in capsys.readouterr().err


def raw(*rows: bytes) -> bytes:
    return b'{"q": "one?", "a": "1"}\n' + b"".join(row + b"\n" for row in rows)


HALF = "half a character (a lone surrogate), which cannot be written to a file"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (raw(rb'{"q": "a \ud800 b", "a": "1"}'), f"x.jsonl, line 2: key 'q' holds \\ud800, {HALF}"),
        (raw(rb'{"q": "a", "a": "\udfff"}'), f"x.jsonl, line 2: key 'a' holds \\udfff, {HALF}"),
        (raw(b'{"q": "a \xed\xa0\x80", "a": "1"}'), f"x.jsonl, line 2: key 'q' holds \\ud800, {HALF}"),
        (raw(rb'{"q": "one?", "a": "\ud800"}'), f"x.jsonl, line 2: key 'a' holds \\ud800, {HALF}"),  # a duplicate
        (raw(rb'{"q": "\ude00\ud83d", "a": "1"}'), f"x.jsonl, line 2: key 'q' holds \\ude00, {HALF}"),
        (raw(rb'{"q": "a", "a": ["\udc80"]}'), f"x.jsonl, line 2: key 'a' holds \\udc80, {HALF}"),
        (raw(b'{"q": "a \xff", "a": "1"}'), "x.jsonl, line 2: not UTF-8 text"),
    ],
)
def test_half_a_character_is_one_sentence_and_code_2(content, sentence, prepare, tmp_path, capsys):
    (tmp_path / "x.jsonl").write_bytes(content)
    keys = ("--source", tmp_path / "x.jsonl", "--question-key", "q", "--answer-key", "a")
    assert prepare(*keys, dataset="custom")[0] == 2
    errors = capsys.readouterr().err
    assert [line for line in errors.splitlines() if line.startswith("error: ")] == [f"error: {sentence}"]
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    "row",
    [
        {"q": "where it is not read", "a": "1", "solution": "\ud800"},
        {"q": "where it is not read", "a": "1", "\ud800": "1"},
        {"q": "a whole one, \U0001f600", "a": "1"},
        {"q": "ends in a zero byte \0", "a": "1"},
        {"q": "not a character, \ufffe", "a": "1"},
    ],
)
def test_what_a_file_can_hold_is_kept(row, custom):
    code, rows, _ = custom([row])
    assert (code, rows[0]["prompt"][-1]["content"]) == (0, row["q"].strip())


def test_a_source_whose_name_is_not_text(custom, prepare, tmp_path):
    name = os.fsdecode(b"ros\xe9.jsonl")
    try:
        source = write_jsonl(tmp_path / name, [{"q": "one?", "a": "1"}])
    except OSError:
        pytest.skip("a file system that takes no such name")
    code, _, manifest = prepare("--source", source, "--question-key", "q", "--answer-key", "a", dataset="custom")
    assert (code, manifest["source"]["path"]) == (0, str(source))


def utf8_column(first: bytes, count: int) -> pa.Array:
    """A text column whose first value is not checked."""
    values = pa.array([first, *[b"1"] * (count - 1)])
    return pa.Array.from_buffers(pa.string(), count, values.buffers())


COLUMNS = {
    "categorical": lambda texts: pa.array(texts).dictionary_encode(),
    "categorical of large strings": lambda texts: pa.array(texts, pa.large_string()).dictionary_encode(),
    "string_view": lambda texts: pa.array(texts, pa.string_view()),
    "large_string": lambda texts: pa.array(texts, pa.large_string()),
    "list of string_view": lambda texts: pa.array([[text] for text in texts], pa.list_(pa.string_view())),
    "fixed-size list": lambda texts: pa.array([[text] for text in texts], pa.list_(pa.string(), 1)),
    "categorical of numbers": lambda texts: pa.array(list(map(int, texts))).dictionary_encode(),
    "decimal": lambda texts: pa.array(texts).cast(pa.decimal128(12, 0)),
    "small integers": lambda texts: pa.array(list(map(int, texts)), pa.uint8()),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_type_of_column_that_holds_text_or_numbers_is_read(kind, prepare, tmp_path):
    answers = [str(i % 3 + 7) for i in range(6)]
    questions = pa.array([f"question {i}?" for i in range(6)])
    questions = (
        questions
        if "numbers" in kind or kind in ("decimal", "small integers")
        else COLUMNS[kind](questions.to_pylist())
    )
    pq.write_table(pa.table({"q": questions, "a": COLUMNS[kind](answers)}), tmp_path / "x.parquet")
    keys = ("--source", tmp_path / "x.parquet", "--question-key", "q", "--answer-key", "a")
    code, rows, manifest = prepare(*keys, dataset="custom")
    assert (code, manifest["dropped"]) == (0, {})
    assert [row["reward_model"]["ground_truth"] for row in rows] == answers
    assert rows[5]["prompt"][-1]["content"] == "question 5?"


def test_nested_categorical_and_string_view_columns(prepare, tmp_path):
    """As verl's own schema has them: prompt messages and a ground truth in a struct. pyarrow writes no lists of text views."""
    message = pa.StructArray.from_arrays(
        [pa.array(["user"] * 3).dictionary_encode(), pa.array(["a?", "b?", "c?"], pa.large_string())],
        ["role", "content"],
    )
    prompt = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), message)
    golds = [pa.array(["1", "2", "1"], pa.string_view()), pa.array(["rule"] * 3).dictionary_encode()]
    gold = pa.StructArray.from_arrays(golds, ["ground_truth", "style"])
    pq.write_table(pa.table({"prompt": prompt, "reward_model": gold}), tmp_path / "x.parquet")
    code, rows, _ = prepare("--source", tmp_path / "x.parquet", dataset="openr1_math_46k")
    assert code == 0
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["1", "2", "1"]


def test_a_categorical_column_that_polars_or_pandas_wrote(prepare, tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"q": ["a?", "b?", "c?"], "a": pd.Categorical(["1", "2", "1"])})
    frame.to_parquet(tmp_path / "x.parquet")
    keys = ("--source", tmp_path / "x.parquet", "--question-key", "q", "--answer-key", "a")
    assert [row["reward_model"]["ground_truth"] for row in prepare(*keys, dataset="custom")[1]] == ["1", "2", "1"]


@pytest.mark.parametrize("text", [b"\xff", b"\xed\xa0\x80", b"ab\xc3"])
def test_a_parquet_column_that_is_no_text_is_one_sentence(text, prepare, tmp_path, capsys):
    table = pa.table({"q": pa.array(["a?", "b?"]), "a": utf8_column(text, 2)})
    pq.write_table(table, tmp_path / "x.parquet")
    keys = ("--source", tmp_path / "x.parquet", "--question-key", "q", "--answer-key", "a")
    assert prepare(*keys, dataset="custom")[0] == 2
    assert "error: x.parquet, after row 0: not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "name"), [(pa.binary(), "bytes"), (pa.date32(), "date"), (pa.bool_(), "bool")])
def test_a_column_that_is_neither_text_nor_numbers_is_named(kind, name, prepare, tmp_path, capsys):
    value = {"bytes": b"1", "bool": True}.get(name, 0)
    pq.write_table(pa.table({"q": ["a?"], "a": pa.array([value], kind)}), tmp_path / "x.parquet")
    keys = ("--source", tmp_path / "x.parquet", "--question-key", "q", "--answer-key", "a")
    assert prepare(*keys, dataset="custom")[0] == 2
    assert f"x.parquet, row 1: key 'a' must hold text or a number, not {name}" in capsys.readouterr().err


def test_an_earlier_output_survives_a_failed_run(prepare, tmp_path):
    prepare("--source", write_jsonl(tmp_path / "good.jsonl", ROWS))
    before = {p.name: p.read_bytes() for p in (tmp_path / "written").iterdir()}
    assert prepare("--source", write_jsonl(tmp_path / "bad.jsonl", [*ROWS, {"question": "x"}]))[0] == 2
    assert {p.name: p.read_bytes() for p in (tmp_path / "written").iterdir()} == before
    assert sorted(before) == ["out.manifest.json", "out.parquet"]


def test_an_output_that_cannot_be_written(prepare, tmp_path, capsys):
    (tmp_path / "written").write_text("a file where the folder should be")
    assert prepare("--source", write_jsonl(tmp_path / "train.jsonl", ROWS))[0] == 2
    assert "cannot be written" in capsys.readouterr().err


def test_as_a_script_from_the_root_with_nothing_on_the_path(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    command = [sys.executable, "data/prepare_train.py", "--dataset", "gsm8k", "--source", str(tmp_path / "train.jsonl")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        [*command, "--out", str(tmp_path / "o.parquet")], cwd=REPO, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "20 of 20 rows, template thought" in result.stdout
    missing = subprocess.run(
        [*command[:-1], "missing.jsonl", "--out", str(tmp_path / "p.parquet")], cwd=REPO, capture_output=True, text=True
    )
    assert (missing.returncode, missing.stderr) == (2, "error: missing.jsonl: there is no such file or folder\n")


def test_lookup():
    row = {"a": {"b": [1, {"c": 2}]}}
    assert lookup(row, "a.b.-1.c") == 2
    for key in ("x", "a.x", "a.b.5", "a.b.x", "a.b.0.c"):
        with pytest.raises(KeyError):
            lookup(row, key)


def test_a_record_carries_its_id():
    assert Record("q", "a", 0).question_id == Record(" q ", "a\n", 7).question_id != Record("q", "b", 0).question_id
