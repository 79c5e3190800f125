"""`exgrpo report`: figures against hand-made runs whose answers are worked out here by other means, and every odd run."""

import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml

from recipe.exgrpo.cli.main import main
from recipe.exgrpo.cli.report import FILES

T_975 = {1: 12.7062047, 2: 4.3026527}  # Student's t, from a printed table, by degrees of freedom
K, B = 8, 4
CURVES = {  # held-out rates before training and after steps 2 and 4
    "on_policy": [[0.30, 0.40, 0.50], [0.32, 0.38, 0.46], [0.28, 0.44, 0.52]],
    "exgrpo": [[0.30, 0.46, 0.58], [0.32, 0.46, 0.55], [0.28, 0.46, 0.59]],
}


def make_run(folder: Path, rates: dict[int, float], steps: int = 4, seed: int | None = 0, **options) -> Path:
    """A run folder as the trainer leaves it: `rates` by validation step, `steps` training steps.

    Options: `settings` nested into the record's config, `metrics`: name -> function of the step, `tail`: what follows the
    last line. Without a seed there is no record.
    """
    folder.mkdir(parents=True)
    metrics = {
        "batch/questions": lambda step: B,
        "experience/replayed_questions": lambda step: 0,
        "experience/replayed_rows": lambda step: 0,
        "perf/time_per_step": lambda step: float(step),
        "actor/grad_norm": lambda step: 0.1 * step,
        "actor/skipped_updates": lambda step: step % 2,
        "actor/entropy": lambda step: 0.5,
    } | options.get("metrics", {})
    lines = []
    for step in sorted({*range(1, steps + 1), *rates}):
        row = {name: of(step) for name, of in metrics.items()} if step else {}
        lines.append({"step": step, **row} | ({"val/pass_rate": rates[step]} if step in rates else {}))
    text = "".join(json.dumps(line) + "\n" for line in lines) + options.get("tail", "")
    (folder / "metrics.jsonl").write_text(text)
    if seed is not None:
        record(folder, seed, options.get("settings", {}))
    return folder


def record(folder: Path, seed: int, settings: dict) -> None:
    start = folder / "record/start-000"
    start.mkdir(parents=True)
    config = {"data": {"seed": seed}, "exgrpo": {"seed": seed}, "actor_rollout_ref": {"rollout": {"n": K}}} | settings
    (start / "config.yaml").write_text(yaml.safe_dump(config))
    (start / "run.json").write_text(json.dumps({"git": {"commit": "0123456789abcdef", "changed": ["README.md"]}}))


@pytest.fixture
def report(tmp_path, capsys):
    """report(*arguments) -> (exit code, report.json as a dict or None, standard output, standard error)."""

    def call(*arguments: object):
        out = tmp_path / "report"
        code = main(["report", *map(str, arguments), "--out", str(out)])
        printed = capsys.readouterr()
        written = out / "report.json"
        return code, json.loads(written.read_text()) if written.exists() else None, printed.out, printed.err

    return call


@pytest.fixture
def study(tmp_path) -> list[str]:
    """The --group arguments of three runs each of two variants, the second replaying half a batch from step 3 on."""
    names = ("experience/replayed_questions", "experience/replayed_rows")
    replays = dict.fromkeys(names, lambda step: 2 if step > 2 else 0)
    arguments = []
    for name, curves in CURVES.items():
        folders = []
        for seed, (first, middle, last) in enumerate(curves):
            metrics = replays if name == "exgrpo" else {}
            rates = {0: first, 2: middle, 4: last}
            folders.append(make_run(tmp_path / f"{name}-s{seed}", rates, seed=seed, metrics=metrics))
        arguments += ["--group", f"{name}={','.join(map(str, folders))}"]
    return arguments


def half_width(values: list[float]) -> float:
    return T_975[len(values) - 1] * stdev(values) / math.sqrt(len(values))


# ---- figures


def test_levels_and_differences_are_those_of_the_runs_paired_by_seed(report, study):
    code, answer, _, _ = report(*study)
    assert code == 0
    ours, theirs = CURVES["exgrpo"], CURVES["on_policy"]
    row = answer["rows"][1]
    assert (row["variant"], row["runs"], row["steps"], row["pairs"], row["validated_to"]) == ("exgrpo", 3, [4], 3, 4)
    for name, place in (("start", 0), ("final", -1)):
        assert row[name] == pytest.approx(mean(curve[place] for curve in ours))
        assert row[f"{name}_half"] == pytest.approx(half_width([curve[place] for curve in ours]))
    gains = [a[-1] - b[-1] for a, b in zip(ours, theirs, strict=True)]
    assert row["final_difference"] == pytest.approx(mean(gains))
    assert row["final_difference_half"] == pytest.approx(half_width(gains))
    # Validations are two steps apart: two trapezoids of equal width.
    heights = [[(a + 2 * b + c) / 4 for a, b, c in curves] for curves in (ours, theirs)]
    assert row["area"] == pytest.approx(mean(heights[0]))
    assert row["area_difference_half"] == pytest.approx(half_width([a - b for a, b in zip(*heights, strict=True)]))
    assert answer["rows"][0]["final_difference"] is answer["rows"][0]["area_difference"] is None


def test_pairs_are_by_seed_not_by_place(report, study):
    shuffled = [*study]
    name, _, runs = shuffled[3].partition("=")
    shuffled[3] = f"{name}={','.join(reversed(runs.split(',')))}"
    rows = [report(*arguments)[1]["rows"][1] for arguments in (shuffled, study)]
    for figure in ("final_difference", "final_difference_half", "area_difference", "area_difference_half"):
        assert rows[0][figure] == pytest.approx(rows[1][figure])


def test_costs_of_replay(report, study):
    plain, replay = report(*study)[1]["rows"]
    assert (plain["replayed_share"], plain["fresh_rollouts"]) == (0.0, 4 * B * K)
    assert (replay["replayed_share"], replay["fresh_rollouts"]) == (4 / 16, 4 * B * K - 4)
    assert replay["step_seconds"] == 2.5  # the median of 1, 2, 3, 4
    assert replay["grad_norm"] == pytest.approx(0.25)
    assert (replay["skipped_updates"], replay["entropy"]) == (2.0, 0.5)


def test_costs_of_sampling_anew_and_of_rows_on_top(report, tmp_path):
    """What a run logged of both counts: dropped groups, and stored rows that no rollout made place for."""
    logged = {"batch/generated_rollouts": lambda step: 40 * step, "batch/rows_updated": lambda step: 30 + step}
    row = report(make_run(tmp_path / "dynamic", {0: 0.3, 4: 0.5}, metrics=logged))[1]["rows"][0]
    assert (row["fresh_rollouts"], row["rows_updated"]) == (40 * 10, 4 * 30 + 10)


def test_costs_of_refill_are_in_sequences_and_no_rollout_is_saved(report, tmp_path):
    rows = {"experience/replayed_rows": lambda step: 4 * (step - 1)}
    run = make_run(tmp_path / "refill", {0: 0.3, 4: 0.5}, metrics=rows)
    row = report(run)[1]["rows"][0]
    assert row["replayed_share"] == (0 + 4 + 8 + 12) / (4 * B * K)
    assert row["fresh_rollouts"] == 4 * B * K


def test_the_entropy_at_the_end_is_that_of_the_last_ten_steps_and_null_is_no_value(report, tmp_path):
    entropy = {"actor/entropy": lambda step: None if step == 12 else float(step)}
    row = report(make_run(tmp_path / "run", {0: 0.3}, steps=14, metrics=entropy))[1]["rows"][0]
    assert row["entropy"] == mean([4, 5, 6, 7, 8, 9, 10, 11, 13, 14])


# ---- files


def test_the_files_are_the_same_bytes_from_the_same_runs(report, study, tmp_path):
    report(*study)
    first = {name: (tmp_path / "report" / name).read_bytes() for name in FILES}
    report(*study)
    assert first == {name: (tmp_path / "report" / name).read_bytes() for name in FILES}
    assert first["curves.png"].startswith(b"\x89PNG")
    text = first["report.md"].decode()
    assert "| `exgrpo` | 3 | 4 | 0.300 ± 0.050 | 0.573 ± 0.052 | **+0.080 ± 0.025** |" in text
    assert f"| `exgrpo` | {tmp_path}/exgrpo-s2 | 2 | 4 | 1 | 012345678+ |" in text
    assert "## Remarks" not in text  # nothing limits this comparison


def test_json_is_printed_alone_and_is_the_file(report, study):
    _, answer, printed, _ = report(*study, "--against", "exgrpo", "--json")
    assert json.loads(printed) == answer
    assert answer["against"] == "exgrpo"
    assert answer["rows"][0]["final_difference"] == pytest.approx(-0.08)
    assert answer["curves"]["exgrpo"]["steps"] == [0, 2, 4]
    assert answer["curves"]["exgrpo"]["runs"][1] == {"seed": 1, "pass_rate": CURVES["exgrpo"][1]}


def test_a_bar_or_an_escape_in_a_name_breaks_no_table(report, tmp_path):
    run = make_run(tmp_path / "a", {0: 0.3, 4: 0.5})
    code, _, printed, _ = report("--group", f"a|\x1b[2Jb={run}")
    assert code == 0
    assert "\x1b" not in printed + (tmp_path / "report/report.md").read_text()
    assert "| `a\\|" in (tmp_path / "report/report.md").read_text()


# ---- runs that limit the comparison: a sentence each


def test_a_single_run_has_no_interval(report, tmp_path):
    code, answer, printed, _ = report(make_run(tmp_path / "alone", {0: 0.3, 4: 0.5}))
    assert code == 0
    assert (answer["rows"][0]["final"], answer["rows"][0]["final_half"]) == (0.5, None)
    assert answer["remarks"] == ["Without interval or band, for a single run: `alone`."]
    assert answer["remarks"][0] in printed


def test_single_runs_of_one_seed_are_paired(report, tmp_path):
    a, b = make_run(tmp_path / "a", {0: 0.3, 4: 0.5}), make_run(tmp_path / "b", {0: 0.3, 4: 0.6})
    row = report(a, b)[1]["rows"][1]
    assert row["final_difference"] == pytest.approx(0.1)
    assert (row["final_difference_half"], row["pairs"]) == (None, 1)


def test_runs_of_unequal_length_are_compared_where_all_are_and_it_is_said(report, tmp_path):
    whole = {0: 0.3, 2: 0.4, 4: 0.5}
    a = [make_run(tmp_path / f"a{seed}", whole, seed=seed) for seed in (0, 1)]
    b = [make_run(tmp_path / "b0", whole, seed=0), make_run(tmp_path / "b1", {0: 0.2, 2: 0.6}, steps=3, seed=1)]
    _, answer, _, _ = report("--group", f"a={a[0]},{a[1]}", "--group", f"b={b[0]},{b[1]}")
    first, second = answer["rows"]
    assert (first["final"], first["validated_to"]) == (0.5, 4)
    assert (second["final"], second["validated_to"], second["steps"]) == (0.5, 2, [3, 4])
    assert (second["final_difference"], second["compared_to"]) == (pytest.approx(0.1), 2)
    assert answer["remarks"] == [
        "The runs of `b` have unequal length, in steps: b0 4, b1 3.",
        "Held-out figures of `b` are at the 2 steps all its runs share, 0 to 2.",
        "Differences of `b` and `a` are up to step 2, the last validation that all pairs have.",
    ]


def test_a_run_without_validation_keeps_its_costs(report, tmp_path):
    runs = [make_run(tmp_path / "seen", {0: 0.3, 4: 0.5}, seed=0), make_run(tmp_path / "blind", {}, seed=1)]
    _, answer, _, _ = report("--group", f"a={runs[0]},{runs[1]}", runs[1])
    both, blind = answer["rows"]
    assert (both["runs"], both["final"], both["final_half"]) == (2, 0.5, None)
    assert (blind["start"], blind["final"], blind["area"], blind["final_difference"]) == (None,) * 4
    assert blind["fresh_rollouts"] == 4 * B * K
    assert f"{runs[1]} has no val/pass_rate (trainer.test_freq); it is in no held-out figure." in answer["remarks"]


def test_no_run_with_validation_still_gives_a_report(report, tmp_path):
    code, answer, _, _ = report(make_run(tmp_path / "blind", {}))
    assert code == 0
    assert answer["curves"] == {}


@pytest.mark.parametrize("tail", ['{"step": 5, "batch/que', '{"step": 5, "batch/que\n', "\0\0\0", '{"step": 5,'])
def test_a_torn_last_line_is_left_out_and_named(report, tmp_path, tail):
    code, answer, _, _ = report(make_run(tmp_path / "torn", {0: 0.3, 4: 0.5}, tail=tail))
    assert code == 0
    assert answer["rows"][0]["steps"] == [4]
    sentence = f"{tmp_path}/torn: the last line is torn (an interruption); the run is read up to step 4."
    assert sentence in answer["remarks"]


def test_seeds_that_only_one_variant_has_are_left_out_of_the_difference(report, tmp_path):
    a = [make_run(tmp_path / f"a{seed}", {0: 0.3, 4: 0.5}, seed=seed) for seed in (0, 1)]
    b = [make_run(tmp_path / f"b{seed}", {0: 0.3, 4: 0.6 + seed}, seed=seed) for seed in (1, 2)]
    _, answer, _, _ = report("--group", f"a={a[0]},{a[1]}", "--group", f"b={b[0]},{b[1]}")
    assert answer["rows"][1]["final_difference"] == pytest.approx(1.1)
    assert answer["remarks"] == ["Differences of `b` and `a` leave out what only one of them has: seed 0, 2."]


def test_one_shared_validation_before_training_is_no_end(report, tmp_path):
    a, b = make_run(tmp_path / "a", {0: 0.3, 4: 0.5}), make_run(tmp_path / "b", {0: 0.2, 8: 0.6})
    code, answer, _, _ = report(a, b)
    assert code == 0
    row = answer["rows"][1]
    assert (row["pairs"], row["compared_to"], row["final_difference"], row["area_difference"]) == (0, *[None] * 3)
    assert "No difference of `b` and `a`: they share no seed, or no validation after step 0." in answer["remarks"]


def test_runs_without_a_seed_in_common_are_not_compared(report, tmp_path):
    a, b = make_run(tmp_path / "a", {0: 0.3, 4: 0.5}), make_run(tmp_path / "b", {0: 0.3, 4: 0.6}, seed=1)
    _, answer, _, _ = report(a, b)
    assert answer["rows"][1]["final_difference"] is None
    assert "No difference of `b` and `a`: they share no seed, or no validation after step 0." in answer["remarks"]


def test_a_run_without_a_record_has_levels_only(report, tmp_path):
    _, answer, _, _ = report(make_run(tmp_path / "bare", {0: 0.3, 4: 0.5}, seed=None))
    row = answer["rows"][0]
    assert (row["final"], row["fresh_rollouts"], row["replayed_share"]) == (0.5, None, 0.0)
    sentence = "bare has no record of its start: its seed and K are unknown, so it has no pair."
    assert f"{tmp_path}/{sentence}" in answer["remarks"]


def test_runs_of_a_variant_that_differ_in_more_than_their_seed_are_named(report, tmp_path):
    settings = [
        {
            "exgrpo": {"seed": seed, "rho": rho},
            "trainer": {"experiment_name": f"s{seed}"},
            "actor_rollout_ref": {"rollout": {"trace": {"experiment_name": f"s{seed}"}}},  # verl hands the name on
        }
        for seed, rho in ((0, 0.5), (1, 0.25))
    ]
    runs = [make_run(tmp_path / f"s{i}", {0: 0.3}, seed=i, settings=s) for i, s in enumerate(settings)]
    _, answer, _, _ = report("--group", f"a={runs[0]},{runs[1]}")
    assert answer["remarks"] == ["The runs of `a` differ in more than their seed: exgrpo.rho."]


# ---- what cannot be reported: one sentence, exit code 1, nothing written


def broken(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(content)
    return folder


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name at least one run"),
        (["ROOT/nowhere"], "nowhere has no metrics.jsonl; name the folder of a run"),
        (["ROOT/empty"], "empty/metrics.jsonl has no finished step yet."),
        (["ROOT/damaged"], 'damaged/metrics.jsonl, line 2: not a JSON object with an integer "step".'),
        (["ROOT/backwards"], "backwards/metrics.jsonl: steps do not rise"),
        (["ROOT/good", "ROOT/other/good"], "two lines are called 'good'"),
        (["ROOT/good", "--against", "absent"], "--against absent: there is no such line; there are good."),
        (["--group", "a=ROOT/good,ROOT/other/good"], "a: two runs have seed 0"),
        (["ROOT/config"], "record/start-000/config.yaml is not YAML, or no configuration."),
    ],
)
def test_what_cannot_be_reported_is_one_sentence(report, tmp_path, arguments, sentence):
    broken(tmp_path / "empty", "")
    broken(tmp_path / "damaged", '{"step": 0}\n{"step": \n{"step": 2}\n')
    broken(tmp_path / "backwards", '{"step": 2}\n{"step": 1}\n')
    make_run(tmp_path / "good", {0: 0.3})
    make_run(tmp_path / "other/good", {0: 0.3})
    make_run(tmp_path / "config", {0: 0.3})
    (tmp_path / "config/record/start-000/config.yaml").write_text("a: [")
    code, answer, printed, err = report(*(argument.replace("ROOT", str(tmp_path)) for argument in arguments))
    assert (code, answer, printed) == (1, None, "")
    assert sentence in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("text", ["a", "=b", "a=", "a=b,,c"])
def test_a_group_that_is_none_is_refused_by_the_command_line(text, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["report", "--group", text])
    assert caught.value.code == 2
    assert "NAME=RUN,RUN" in capsys.readouterr().err


def test_report_loads_no_heavy_package(study, tmp_path):
    code = (
        "import sys; from recipe.exgrpo.cli.main import main; code = main(['report', *sys.argv[1:], '--json']);"
        "assert not {'ray', 'verl', 'torch', 'transformers', 'vllm'} & set(sys.modules); sys.exit(code)"
    )
    place = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, *study, "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
