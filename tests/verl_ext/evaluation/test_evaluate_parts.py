"""Parts of an evaluation that need no model: questions, seeds, sharing, the journal, tables, fingerprints, devices."""

import json
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from transformers import AutoTokenizer

from verl_ext.evaluation import EvaluationError, journal, report, shards, tables
from verl_ext.evaluation.model import BLOCK, WHOLE, find_model, fingerprint, merged
from verl_ext.evaluation.plan import Options, make_plan
from verl_ext.evaluation.published import Published
from verl_ext.evaluation.questions import (
    Benchmark,
    Item,
    Question,
    chunks_of,
    items_of,
    load_benchmarks,
    parquet_files,
    share,
)
from verl_ext.evaluation.worker import _graded
from verl_ext.rewards import Grader

ROOT = Path(__file__).resolve().parents[3]
TOY = ROOT / "data" / "toy" / "model"


def row(i: int, source: str = "math500", n_samples: int | None = 2, question_id: str | None = None) -> dict:
    info = {"index": i, "question_id": question_id or f"q{i}", "think_format": False}
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": f"Question {i}?"}],
        "reward_model": {"style": "rule", "ground_truth": str(i % 10)},
        "extra_info": info if n_samples is None else info | {"n_samples": n_samples},
    }


def write(path: Path, rows: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def data(tmp_path) -> Path:
    return write(tmp_path / "math500.parquet", [row(i) for i in range(10)])


def test_samples_follow_the_data_or_the_option(data, tmp_path):
    assert load_benchmarks([data], None, None, 0)[0].n_samples == 2
    assert load_benchmarks([data], 5, None, 0)[0].n_samples == 5
    bare = write(tmp_path / "bare.parquet", [row(i, n_samples=None) for i in range(3)])
    assert load_benchmarks([bare], None, None, 0)[0].n_samples == 1


def test_limit_draws_by_seed_and_keeps_the_order(data):
    def drawn(seed: int) -> list[str]:
        return [q.key for q in load_benchmarks([data], None, 4, seed)[0].questions]

    assert drawn(0) == drawn(0) == sorted(drawn(0))
    assert len({tuple(drawn(seed)) for seed in range(5)}) > 1
    assert load_benchmarks([data], None, 4, 0)[0].available == 10
    assert len(load_benchmarks([data], None, 40, 0)[0].questions) == 10


def test_a_repeated_question_keeps_its_place(tmp_path):
    rows = [row(0, question_id="same"), row(1), row(0, question_id="same")]
    benchmark = load_benchmarks([write(tmp_path / "a.parquet", rows)], None, None, 0)[0]
    assert [q.key for q in benchmark.questions] == ["same", "q1", "same#2"]
    items = items_of([benchmark])
    assert len({item.seed(0) for item in items}) == len(items) == 6


def test_seeds_depend_on_the_sample_alone():
    item = Item("math500", "q", 3)
    assert item.seed(0) == Item("math500", "q", 3).seed(0)
    others = [Item("math500", "q", 4), Item("math500", "r", 3), Item("minerva", "q", 3)]
    assert len({item.seed(0), item.seed(1), *(other.seed(0) for other in others)}) == 5
    assert all(0 <= item.seed(seed) < 2**63 for seed in range(100))


def test_chunks_cover_every_item_once_in_any_number_of_processes():
    chunks = chunks_of(103, 10)
    for count in (1, 2, 3, 20):
        shares = share(chunks, count)
        assert len(shares) == min(count, 11)
        dealt = [item for part in shares for chunk in part for item in chunk]
        assert sorted(dealt) == list(range(103))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert share([], 4) == []


def test_folders_leave_out_the_validation_mix(data):
    write(data.parent / "validation.parquet", [row(0)])
    assert parquet_files([data.parent]) == [data]
    with pytest.raises(EvaluationError, match="there is no parquet file"):
        parquet_files([data.parent / "nowhere"])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda d: pq.write_table(pa.table({"question": ["1+1?"]}), d / "a.parquet"), "not in verl's schema"),
        (lambda d: write(d / "a.parquet", [row(0) | {"prompt": "1+1?"}]), "not in verl's schema"),
        (lambda d: write(d / "a.parquet", [row(0) | {"reward_model": {"style": "rule"}}]), "not in verl's schema"),
        (lambda d: (d / "a.parquet").write_text("no"), "cannot be read as parquet"),
        (lambda d: write(d / "a.parquet", [row(0, n_samples=1), row(1, n_samples=2)]), "n_samples differs"),
        (lambda d: pq.write_table(pa.Table.from_pylist([row(0)]).slice(0, 0), d / "a.parquet"), "no questions"),
    ],
)
def test_unusable_data_is_refused(tmp_path, make, reason):
    make(tmp_path)
    with pytest.raises(EvaluationError, match=reason):
        load_benchmarks([tmp_path / "a.parquet"], None, None, 0)


def test_a_benchmark_in_two_files_is_refused(data, tmp_path):
    other = write(tmp_path / "other.parquet", [row(0)])
    with pytest.raises(EvaluationError, match=r"math500 was already read from .*math500\.parquet"):
        load_benchmarks([data, other], None, None, 0)


# --- the journal ---

ITEMS = [Item("math500", f"q{i}", s) for i in range(5) for s in range(2)]
CHUNKS = chunks_of(len(ITEMS), 4)


def generation(i: int, text: str = "") -> dict:
    score = {"score": float(i % 3 == 0), "format_ok": 1.0, "timeout": 0.0, "error": 0.0, "extracted": "3"}
    about = {"tokens": 10 + i, "finish_reason": "length" if i == 9 else "stop", "text": text or f"text {i}"}
    return {"item": i, **vars(ITEMS[i]), **about, "score": score}


def test_complete_chunks_are_kept_in_order_and_the_rest_is_missing(tmp_path):
    journal.append(journal.shard_file(tmp_path, 1), map(generation, CHUNKS[2]))
    journal.append(journal.shard_file(tmp_path, 0), map(generation, [0, 1, 2]))
    assert journal.consolidate(tmp_path, ITEMS, CHUNKS) == [CHUNKS[0], CHUNKS[1]]
    assert [found["item"] for found in journal.read(tmp_path)] == list(CHUNKS[2])
    journal.append(journal.shard_file(tmp_path, 0), map(generation, [*CHUNKS[1], *CHUNKS[0]]))
    assert journal.consolidate(tmp_path, ITEMS, CHUNKS) == []
    assert list(journal.read(tmp_path)) == [generation(i) for i in range(10)]
    assert [file.name for file in tmp_path.iterdir()] == ["generations.jsonl"]


@pytest.mark.parametrize("cut", [1, 20, 5000])
def test_a_torn_last_line_is_done_again(tmp_path, cut):
    file = journal.shard_file(tmp_path, 0)
    journal.append(file, (generation(i, "x" * 5000) for i in range(8)))
    content = file.read_bytes()
    file.write_bytes(content[:-cut])
    assert journal.consolidate(tmp_path, ITEMS, CHUNKS) == [CHUNKS[1], CHUNKS[2]]
    journal.append(file, (generation(i, "x" * 5000) for i in CHUNKS[1]))
    journal.consolidate(tmp_path, ITEMS, CHUNKS)
    assert (tmp_path / journal.MERGED).read_bytes() == content


def test_a_kill_between_consolidating_and_removing_loses_and_repeats_nothing(tmp_path):
    file = journal.shard_file(tmp_path, 0)
    journal.append(file, map(generation, range(8)))
    content = file.read_bytes()
    journal.consolidate(tmp_path, ITEMS, CHUNKS)
    file.write_bytes(content)
    assert journal.consolidate(tmp_path, ITEMS, CHUNKS) == [CHUNKS[2]]
    assert (tmp_path / journal.MERGED).read_bytes() == content


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"garbage\n", "line 2: not a generation"),
        (
            json.dumps(generation(1) | {"question": "other"}).encode() + b"\n",
            "line 2: a generation of another evaluation",
        ),
        (json.dumps(generation(1) | {"item": 99}).encode() + b"\n", "another evaluation"),
        (json.dumps(generation(1) | {"item": "1"}).encode() + b"\n", "another evaluation"),
        (b"[1]\n", "line 2: not a generation"),
    ],
)
def test_an_altered_line_is_refused(tmp_path, line, reason):
    file = journal.shard_file(tmp_path, 0)
    lines = [json.dumps(generation(i)).encode() + b"\n" for i in (0, 2)]
    file.write_bytes(lines[0] + line + lines[1])
    with pytest.raises(EvaluationError, match=reason):
        journal.consolidate(tmp_path, ITEMS, CHUNKS)
    assert file.exists()


# --- the report ---

MATHS = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench")
PUBLISHED = Published.from_mapping({
    "titles": {"math500": "MATH-500"},
    "groups": {"in distribution": MATHS, "out of distribution": ("arc_c",)},
    "backbones": {
        "qwen2.5-math-1.5b": {
            "title": "Qwen2.5-Math-1.5B",
            "rows": [
                {"method": method, "scores": {"math500": score}, "averages": {"in distribution": average}}
                for method, score, average in (("base", 28.0, 16.0), ("on-policy", 61.8, 30.0), ("ExGRPO", 74.0, 35.3))
            ],
        }
    },
})  # fmt: skip


@pytest.mark.parametrize(
    ("text", "finish_reason", "score"),
    [
        ("It is 42", "stop", 1.0),
        ("It is 42", "length", 0.0),
        ("the answer is 42", "length", 0.0),
        (r"\boxed{42}, and", "length", 1.0),
        (r"\boxed{42", "length", 0.0),
    ],
)
def test_a_response_cut_at_the_limit_needs_a_box(text, finish_reason, score):
    question = {"think_format": False, "ground_truth": "42"}
    job = {"questions": {"math500": {"q0": question}}, "grading": {"workers": 1, "rules_module": None}}
    row = {"benchmark": "math500", "question": "q0", "text": text, "finish_reason": finish_reason}
    graded = _graded(row, job)["score"]
    assert (graded["score"], graded["truncated"]) == (score, float(finish_reason == "length"))


def test_the_other_grader_is_told_too():
    benchmark = Benchmark("mmlu_pro", (Question("q1", (), "B", {}),), 2, 1)
    said = {"benchmark": "mmlu_pro", "question": "q1", "text": "Answer: B", "score": {"extracted": "", "score": 0.0}}
    rows = [said | {"sample": 0, "finish_reason": "length"}, said | {"sample": 1, "finish_reason": "stop"}]
    with Grader(1) as grader:
        found = report.oat_like([benchmark], rows, grader)["mmlu_pro"]
    assert [example["sample"] for example in found["examples"]] == [1]


@pytest.fixture
def results(tmp_path) -> dict:
    benchmarks = load_benchmarks([write(tmp_path / "m.parquet", [row(i) for i in range(5)])], None, None, 0)
    journal.append(tmp_path / journal.MERGED, map(generation, range(10)))
    figures = report.figures(benchmarks, journal.read(tmp_path))
    return {
        "model": {"name": "run/global_step_60"},
        "benchmarks": figures,
        "averages": report.averages(figures, PUBLISHED),
        "backbone": "qwen2.5-math-1.5b",
        "oat_like": {"math500": {"mean": 0.5, "only_training": 1, "only_oat_like": 2, "examples": []}},
    }


def test_figures_of_fixed_generations(results):
    figures = results["benchmarks"]["math500"]
    assert figures["mean"] == pytest.approx(0.4)  # items 0, 3, 6, 9 of ten
    assert figures["pass_at"] == pytest.approx({"1": 0.4, "2": 0.8})
    assert (figures["tokens_mean"], figures["truncated"], figures["available"]) == (14.5, 0.1, 5)
    assert results["averages"] == {}  # five of the six benchmarks are missing


def test_a_slice_says_so_beside_the_paper(results):
    results["benchmarks"]["math500"] |= {"questions": 5, "available": 500}
    assert tables.result_tables(results, PUBLISHED)[0].header == ("", "MATH-500 (5 of 500)")


def test_average_of_a_whole_group_only():
    figures = {name: {"mean": i / 10} for i, name in enumerate(MATHS)}
    assert report.averages(figures, PUBLISHED) == {"in distribution": pytest.approx(0.25)}


EXPECTED = """\
**Accuracy, %**

|  | MATH-500 |
| --- | ---: |
| ours: run/global\\_step\\_60 | 40.0 |
| paper: Qwen2.5-Math-1.5B, base | 28.0 |
| paper: Qwen2.5-Math-1.5B, on-policy | 61.8 |
| paper: Qwen2.5-Math-1.5B, ExGRPO | 74.0 |
"""


def test_without_published_results_there_are_ours_alone(results):
    comparison = tables.result_tables(results, Published())[0]
    assert (comparison.header, comparison.rows) == (("", "math500"), (("ours: run/global_step_60", "40.0"),))
    assert report.averages(results["benchmarks"], Published()) == {}


def test_tables_of_fixed_generations_are_byte_identical(results, tmp_path):
    assert tables.markdown(tables.result_tables(results, PUBLISHED)).startswith(EXPECTED)
    first = [file.read_bytes() for file in report.write(tmp_path, results, PUBLISHED)]
    second = [file.read_bytes() for file in report.write(tmp_path, json.loads(first[0]), PUBLISHED)]
    assert first == second


def test_an_untrusted_name_neither_breaks_a_table_nor_reaches_the_terminal(results, tmp_path):
    results["model"]["name"] = "a|b\n\x1b[31m[red]$x$<b>`"
    shown = tables.result_tables(results, PUBLISHED)
    text = tables.markdown(shown)
    assert r"a\|b\\n\\x1b\[31m\[red\]$x$\<b\>\`" in text
    assert {line.replace(r"\|", "").count("|") for line in text.split("\n\n")[1].splitlines()} == {3}
    console = Console(record=True, width=200, force_terminal=True, file=(tmp_path / "out").open("w"))
    for table in shown:
        console.print(tables.for_terminal(table))
    assert r"a|b\n\x1b[31m[red]$x$<b>`" in console.export_text()


# --- the model ---


def test_a_changed_weight_or_template_changes_the_fingerprint(tmp_path):
    large = tmp_path / "model.safetensors"
    large.write_bytes(bytes(WHOLE + 7 * BLOCK))
    small = tmp_path / "chat_template.jinja"
    small.write_text("{{ x }}")
    before = fingerprint(tmp_path, [large, small])
    assert before == fingerprint(tmp_path, [large, small])
    small.write_text("{{ y }}")
    after = fingerprint(tmp_path, [large, small])
    content = bytearray(large.read_bytes())
    content[-1] = 1
    large.write_bytes(content)
    assert len({before, after, fingerprint(tmp_path, [large, small])}) == 3


def test_toy_model():
    model = find_model(str(TOY))
    assert (model.context, model.dtype, model.checkpoint, model.name) == (512, "float32", False, "model")
    assert 250_000 < model.parameters < 400_000


def test_the_size_of_a_damaged_model_is_not_known(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((TOY / name).read_bytes())
    (tmp_path / "model-2.safetensors").write_bytes((TOY / "model.safetensors").read_bytes()[:-1])
    assert find_model(str(tmp_path)).parameters is None


@pytest.mark.parametrize("spec", ["nothing", "./nothing", "a/b/c", "tests"])
def test_what_is_no_model_is_refused(spec):
    with pytest.raises(EvaluationError, match="neither a Hugging Face folder nor a checkpoint"):
        find_model(spec)


def test_a_checkpoint_without_weights_is_refused(tmp_path):
    (tmp_path / "actor" / "huggingface").mkdir(parents=True)
    (tmp_path / "actor" / "huggingface" / "config.json").write_text("{}")
    with pytest.raises(EvaluationError, match="no FSDP weights"):
        find_model(str(tmp_path))


def checkpoint_at(folder: Path, weights: bytes) -> Path:
    (folder / "actor" / "huggingface").mkdir(parents=True, exist_ok=True)
    (folder / "actor" / "huggingface" / "config.json").write_text('{"dtype": "float32"}')
    (folder / "actor" / "model_world_size_1_rank_0.pt").write_bytes(weights)
    return folder


@pytest.fixture
def merger(monkeypatch):
    """Stands in for verl's merger: copies the weights; `merger.code` is its exit code, `merger.calls` counts."""

    def call(command, **options):
        call.calls += 1
        source, target = (Path(command[command.index(flag) + 1]) for flag in ("--local_dir", "--target_dir"))
        target.mkdir(exist_ok=True)
        (target / "weights").write_bytes((source / "model_world_size_1_rank_0.pt").read_bytes())
        return subprocess.CompletedProcess(command, call.code)

    call.calls = call.code = 0
    monkeypatch.setattr("verl_ext.evaluation.model.subprocess.run", call)
    return call


def test_a_checkpoint_is_merged_once_and_again_when_it_has_changed(merger, tmp_path):
    model = find_model(str(checkpoint_at(tmp_path / "run" / "global_step_8", b"first")))
    assert (model.name, model.dtype, model.checkpoint) == ("run/global_step_8", "bfloat16", True)
    for _ in range(2):
        assert (merged(model, tmp_path) / "weights").read_bytes() == b"first"
    assert merger.calls == 1
    model = find_model(str(checkpoint_at(tmp_path / "run" / "global_step_8", b"other")))
    assert (merged(model, tmp_path) / "weights").read_bytes() == b"other"
    assert merger.calls == 2


def test_a_merger_that_fails_leaves_nothing_to_evaluate(merger, tmp_path):
    model = find_model(str(checkpoint_at(tmp_path / "global_step_8", b"first")))
    merger.code = 1
    with pytest.raises(EvaluationError, match="verl's model merger failed with exit code 1"):
        merged(model, tmp_path)
    merger.code = 0
    assert (merged(model, tmp_path) / "weights").read_bytes() == b"first"


# --- the plan ---


def test_plan_of_the_toy_model(data):
    plan = make_plan(Options(str(TOY), [data], max_tokens=64, limit=4, chunk=3))
    assert (len(plan.items), [len(chunk) for chunk in plan.chunks]) == (8, [3, 3, 2])
    assert plan.max_model_len == plan.prompts.longest + 64 < 512
    questions = plan.work(TOY).questions["math500"]
    assert {q["max_tokens"] - 64 for q in questions.values()} <= {0}
    assert plan.settings() == make_plan(Options(str(TOY), [data], max_tokens=64, limit=4, chunk=3)).settings()


def test_arguments_reach_the_chat_template_and_are_another_evaluation(data, tmp_path):
    """As verl's agent loop writes the prompts of a run (data.apply_chat_template_kwargs)."""
    folder = shutil.copytree(TOY, tmp_path / "tokenizer")
    (folder / "chat_template.jinja").write_text(
        "{{ messages[0].content }}{% if enable_thinking is false %} = ?{% endif %}"
    )
    common = {"tokenizer": str(folder), "max_tokens": 64, "limit": 2}
    plain, without = (
        make_plan(Options(str(TOY), [data], chat_template_kwargs=given, **common))
        for given in (None, {"enable_thinking": False})
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for key, ids in plain.prompts.ids["math500"].items():
        assert without.prompts.ids["math500"][key] == ids + tokenizer.encode(" = ?", add_special_tokens=False)
    assert [key for key in plain.settings() if plain.settings()[key] != without.settings()[key]] == ["prompts"]


def test_responses_end_with_the_context(data):
    plan = make_plan(Options(str(TOY), [data]))
    assert plan.max_model_len == 512
    for question in plan.work(TOY).questions["math500"].values():
        assert len(question["prompt_token_ids"]) + question["max_tokens"] == 512


@pytest.mark.parametrize(
    ("change", "key"),
    [({"temperature": 1.0}, "temperature"), ({"seed": 1}, "seed"), ({"samples": 3}, "benchmarks"), ({"chunk": 5}, "chunk"),
     ({"limit": 5}, "benchmarks"), ({"max_tokens": 65}, "max_tokens"), ({"dtype": "bfloat16"}, "dtype")],
)  # fmt: skip
def test_whatever_changes_generations_changes_the_settings(data, change, key):
    options = {"max_tokens": 64, "chunk": 4}
    a = make_plan(Options(str(TOY), [data], **options)).settings()
    b = make_plan(Options(str(TOY), [data], **options | change)).settings()
    assert key in [k for k in a if a[k] != b[k]]


def test_a_prompt_longer_than_the_context_is_refused(tmp_path):
    long = row(0) | {"prompt": [{"role": "user", "content": "7 " * 600}]}
    with pytest.raises(EvaluationError, match="the longest prompt has"):
        make_plan(Options(str(TOY), [write(tmp_path / "a.parquet", [long])]))


@pytest.mark.parametrize("change", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"gpu_memory_utilization": 0}])
def test_values_out_of_range_are_refused(change):
    with pytest.raises(EvaluationError, match=f"--{next(iter(change)).replace('_', '-')}"):
        Options("m", [], **change)


# --- devices ---


def test_accelerators_are_dealt_in_groups(monkeypatch):
    found = shards.environments(2, 2, ["4", "5", "6", "7"])
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in found] == ["4,5", "6,7"]
    with pytest.raises(EvaluationError, match="3 processes of 2 accelerators were asked for, 4 are visible"):
        shards.environments(3, 2, ["4", "5", "6", "7"])


def test_cpu_workers_share_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert [e["OMP_NUM_THREADS"] for e in shards.environments(3, 1, [])] == ["2"] * 3


def test_visible_devices(tmp_path, monkeypatch):
    monkeypatch.setattr("verl_ext.platform._torch_is_cpu_build", lambda: False)
    assert shards.visible_devices({}, tmp_path) == []
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    assert shards.visible_devices({}, tmp_path) == ["0", "1"]
    assert shards.visible_devices({"CUDA_VISIBLE_DEVICES": "3, 5"}, tmp_path) == ["3", "5"]
    assert shards.visible_devices({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []
