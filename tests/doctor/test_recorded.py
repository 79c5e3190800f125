"""The examination of a machine with a GPU. What the GPU says is CONSTRUCTED (tests/helpers/gpu_recordings.py); what is planned,
composed, judged and written is the real thing."""

import json
from dataclasses import replace
from pathlib import Path

import gpu_recordings as gpu
import pytest
from run_folders import cut, save

from recipe.exgrpo.checks.findings import impossible, warning
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.doctor import examination
from recipe.exgrpo.doctor.cards import read_cards
from recipe.exgrpo.doctor.examination import Examination
from recipe.exgrpo.doctor.judge import estimates, judge
from recipe.exgrpo.doctor.model import shape_fields
from recipe.exgrpo.doctor.plan import BASELINE, EXGRPO, LORA, MODEL, RESUME, SCRIPT, Device, Start, starts
from recipe.exgrpo.doctor.report import FILE, TEXT
from recipe.exgrpo.doctor.training import Outcome
from recipe.exgrpo.doctor.verdicts import FAILED, OK, SKIPPED, WARNING
from recipe.exgrpo.presets.compose import script_overrides

CARDS = read_cards(gpu.NVIDIA_SMI)
RTX, H100 = Device("cuda", 24), Device("cuda", 80, flash_attention=True)


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """Of the model with random weights the config alone: 1 GB of them say nothing about a verdict."""

    monkeypatch.setattr(examination, "make_model", lambda folder, small: write_config(folder))


def write_config(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape_fields(small=False)))


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """composed(start) -> the configuration of one like it, composed once: a second each. Nobody changes it."""
    out, found = tmp_path_factory.mktemp("composed"), {}

    def get(start):
        key = start.section, start.kind == LORA
        if key not in found:
            write_config(out / MODEL)
            found[key] = replace(start, model=start.model and out / MODEL, run=out / "run").composed()
        return found[key]

    return get


@pytest.fixture
def once(monkeypatch, composed):
    monkeypatch.setattr(Start, "composed", Start.compose, raising=False)
    monkeypatch.setattr(Start, "compose", composed)


@pytest.fixture
def examined(tmp_path, once):
    """examined({"toy exgrpo": {changed of the outcome}}, findings) -> (verdicts by name, doctor.json, text)."""

    def run(changed=None, findings=(), sections=("toy", "model")):
        made = []

        def train(start, limit_s, card_bytes, told) -> Outcome:
            told("step 1")
            made.append(start.name)
            if start.kind == EXGRPO:
                save(start.run, 2)
            return gpu.outcome(start, **(changed or {}).get(start.name, {}))

        found = Examination(tmp_path, gpu.facts(CARDS[:1]), RTX, sections, train=train, check=lambda _: findings).run()
        content = json.loads((tmp_path / FILE).read_text())
        assert content["verdicts"] == [verdict.as_dict() for verdict in found.verdicts]
        assert [name for name in content["commands"] if name in made] == made
        return {(v.section, v.check): v for v in found.verdicts}, content, (tmp_path / TEXT).read_text()

    return run


def test_a_sound_machine_is_all_ok(examined):
    verdicts, content, text = examined()
    assert {verdict.verdict for verdict in verdicts.values()} == {OK}
    assert list(content["commands"]) == [
        *("toy baseline", "toy exgrpo", "toy resume"),
        *("model baseline", "model exgrpo", "model resume", "model lora"),
    ]
    assert content["counts"][FAILED] == 0
    assert content["complete"]
    assert content["device"] == "NVIDIA GeForce RTX 4090"
    assert "NVIDIA GeForce RTX 4090" in text.splitlines()[0]
    memory = verdicts["model", "exgrpo memory"].figures
    assert (memory["start_gib"], memory["rollout_gib"], memory["update_gib"]) == (3.0, 12.0, 9.0)
    assert verdicts["model", "exgrpo speed"].figures["tokens_per_second"] == 7123.0


def test_a_start_that_fails_is_reported_with_its_cause_and_the_later_ones_run(examined):
    said = ["...", "ended after step 1: RUN. No checkpoint was saved. Cause: OutOfMemoryError: CUDA out of memory."]
    broken = {"code": 1, "log": said, "rows": []}
    verdicts, content, text = examined({"toy baseline": broken, "model exgrpo": broken})
    baseline = verdicts["toy", BASELINE]
    assert (baseline.verdict, baseline.figures["exit_code"]) == (FAILED, 1)
    assert baseline.sentence == "ended before its first step: OutOfMemoryError: CUDA out of memory."
    assert verdicts["toy", RESUME].verdict == OK, "the baseline is nothing that ExGRPO needs"
    assert verdicts["model", RESUME].verdict == SKIPPED, "there is nothing to continue"
    assert verdicts["model", LORA].verdict == OK
    assert verdicts["model", "exgrpo memory"].figures["start_gib"] is not None, "what it took before it died"
    assert set(content["logs"]) == {"toy baseline", "model exgrpo"}
    assert "CUDA out of memory" in text


def test_a_start_without_an_end_says_what_it_said_last(examined):
    verdicts, _, _ = examined(
        {"toy exgrpo": {"code": None, "rows": [], "log": ["NCCL INFO Bootstrap"], "seconds": 600}}
    )
    assert verdicts["toy", EXGRPO].sentence == (
        "ended before its first step: no end after 600 s; its last line: NCCL INFO Bootstrap"
    )


def test_what_cannot_be_made_is_a_failure_of_its_own(examined, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(examination, "make_model", full)
    verdicts, _, _ = examined()
    assert verdicts["toy", RESUME].verdict == OK
    assert verdicts["model", BASELINE].sentence.endswith("No space left on device")
    assert [verdicts["model", kind].verdict for kind in (EXGRPO, RESUME, LORA)] == [FAILED, SKIPPED, FAILED]


def test_an_examination_that_is_interrupted_says_so_and_leaves_no_weights(tmp_path, once):
    def interrupted(start, *_):
        if start.kind == RESUME:
            raise KeyboardInterrupt
        save(start.run, 2)
        return gpu.outcome(start)

    with pytest.raises(KeyboardInterrupt):
        Examination(tmp_path, gpu.facts(CARDS[:1]), RTX, ["toy"], train=interrupted, check=lambda _: ()).run()
    content = json.loads((tmp_path / FILE).read_text())
    assert not content["complete"]
    assert {one["check"] for one in content["verdicts"]} >= {BASELINE, EXGRPO, "exgrpo checkpoint"}
    assert "not to its end" in (tmp_path / TEXT).read_text()
    assert list(tmp_path.rglob("global_step_*")) == []


def test_what_exgrpo_check_finds_is_a_verdict(examined):
    verdicts, _, _ = examined(findings=[warning("little room."), impossible("no room.")])
    assert verdicts["model", "exgrpo check"].verdict == FAILED
    assert verdicts["model", "exgrpo check"].sentence == "no room. little room."


# ---- one verdict after the other


def judged(tmp_path, kind: str, section: str = "model", device: Device = RTX, **changed) -> dict:
    """Verdicts by check, of a start whose outcome differs in something from a sound one."""
    if section == "model":
        write_config(tmp_path / MODEL)
    start = next(one for one in starts(section, tmp_path, device) if one.kind == kind)
    if kind == EXGRPO and "saved" not in changed:
        save(start.run, 2)
    changed.pop("saved", None)
    row = changed.pop("row", {})
    outcome = gpu.outcome(start, **({"rows": gpu.rows_of(start, **row)} | changed))
    return {verdict.check: verdict for verdict in judge(start, outcome, Run.of(start.compose()))}


def test_an_exgrpo_that_replays_nothing_has_failed(tmp_path, once):
    row = {"experience/replayed_rows": 0}
    assert judged(tmp_path, EXGRPO, row=row)["exgrpo replay"].verdict == FAILED
    assert judged(tmp_path, RESUME, row=row)["resume replay"].verdict == FAILED


def test_a_baseline_that_stores_something_has_failed(tmp_path, once):
    assert judged(tmp_path, BASELINE)["baseline replay"].verdict == OK
    row = {"experience/buffer_trajectories": 3}
    assert judged(tmp_path, BASELINE, row=row)["baseline replay"].verdict == FAILED


@pytest.mark.parametrize(("gap", "verdict"), [(0.004, OK), (0.05, WARNING), (0.3, FAILED), (None, FAILED)])
def test_the_gap_between_vllm_and_the_trainer(tmp_path, once, gap, verdict):
    found = judged(tmp_path, LORA, row={"gap": gap})["lora log-probs"]
    assert found.verdict == verdict
    assert ("docs/troubleshooting.md" in found.sentence) == (verdict != OK)


@pytest.mark.parametrize("row", [{"actor/grad_norm": None}, {"actor/grad_norm": 0.0}, {"actor/skipped_updates": 1.0}])
def test_updates_without_a_gradient_or_skipped_have_failed(tmp_path, once, row):
    assert judged(tmp_path, EXGRPO, row=row)["exgrpo updates"].verdict == FAILED


def test_a_resume_that_begins_anew_has_failed(tmp_path, once):
    rows = [(gpu.BEGAN + 70, gpu.row(1)), (gpu.BEGAN + 80, gpu.row(2)), (gpu.BEGAN + 90, gpu.row(3, 8, 90))]
    found = judged(tmp_path, RESUME, rows=rows)
    assert found[RESUME].verdict == FAILED
    assert found[RESUME].sentence == "logged steps [1, 2, 3] instead of [3]"
    assert list(found) == [RESUME]


def test_a_peak_above_the_estimate_is_a_warning_that_names_the_phase(tmp_path, once):
    start = next(one for one in starts("model", tmp_path, RTX) if one.kind == EXGRPO)
    write_config(tmp_path / MODEL)
    estimate = estimates(Run.of(start.compose()))["update"] / 2**30
    found = judged(tmp_path, EXGRPO, memory=gpu.memory(update_gib=1.2 * estimate))["exgrpo memory"]
    assert found.verdict == WARNING
    assert found.sentence.endswith("; update above the estimate")
    assert found.figures["update_estimate_gib"] == pytest.approx(estimate, abs=1e-3)


def test_memory_that_nobody_read_is_no_zero(tmp_path, once):
    found = judged(tmp_path, EXGRPO, memory=[])["exgrpo memory"]
    assert found.verdict == SKIPPED
    assert found.figures["update_gib"] is None


def test_a_checkpoint_that_is_cut_or_missing_has_failed(tmp_path, once):
    assert judged(tmp_path, EXGRPO, saved=False)["exgrpo checkpoint"].sentence == "none was saved"
    saved = save(tmp_path / "model-exgrpo", 2)
    assert judged(tmp_path, EXGRPO, saved=False)["exgrpo checkpoint"].verdict == OK
    cut(saved / "data.pt")
    found = judged(tmp_path, EXGRPO, saved=False)["exgrpo checkpoint"]
    assert found.verdict == FAILED
    assert "data.pt is cut short" in found.sentence


# ---- what is started


def test_the_sizes_of_the_model_fit_every_card_by_the_estimate(tmp_path):
    """The update of 0.5B, all weights trained, beside a sleeping vLLM."""
    write_config(tmp_path / MODEL)
    for gigabytes in (8, 24, 80):
        start = next(one for one in starts("model", tmp_path, Device("cuda", gigabytes)) if one.kind == EXGRPO)
        run = Run.of(start.compose())
        assert run.config.preset.gpu_memory_gib == gigabytes
        assert run.config.trainer.device == "cuda"
        assert max(estimates(run).values()) < 0.95 * gigabytes * 2**30, gigabytes


def test_starts_are_of_the_card_and_of_what_is_installed(tmp_path):
    attention = "+actor_rollout_ref.model.override_config.attn_implementation=sdpa"
    assert attention in starts("toy", tmp_path, RTX)[0].overrides
    assert attention not in starts("toy", tmp_path, H100)[0].overrides
    assert [Device("cuda", size).hardware for size in (12, 24, 40, 48, 80, 141)] == [
        *("gpu_1x24", "gpu_1x24", "gpu_1x24", "gpu_1x48", "gpu_1x80", "gpu_1x80"),
    ]
    baseline, lora = starts("toy", tmp_path, H100)[0].compose(), starts("model", tmp_path, H100)[3].compose()
    assert (baseline.exgrpo.policy, lora.exgrpo.policy) == ("on_policy", "exgrpo")
    assert lora.actor_rollout_ref.model.lora_rank == 16


def test_a_shell_that_has_switches_set_changes_nothing(tmp_path, monkeypatch):
    start = starts("toy", tmp_path, RTX)[1]
    plain = script_overrides(SCRIPT, start.overrides, start.environment)
    for name, value in {
        "TINY": "1",
        "MODEL": "/elsewhere",
        "GPUS": "8",
        "RUN": "/elsewhere",
        "METHOD": "refill",
    }.items():
        monkeypatch.setenv(name, value)
    assert script_overrides(SCRIPT, start.overrides, start.environment) == plain


def test_quick_is_exgrpo_and_its_resume(tmp_path):
    assert [one.kind for one in starts("toy", tmp_path, RTX, quick=True)] == [EXGRPO, RESUME]
    assert starts("model", tmp_path, RTX, quick=True) == []
    exgrpo, resume = starts("toy", tmp_path, RTX, quick=True)
    assert (exgrpo.run, exgrpo.steps, resume.steps) == (resume.run, 2, 3)


def test_cards_in_instances_are_not_measured(tmp_path):
    whole = Examination(tmp_path, gpu.facts(CARDS[:1]), RTX)
    assert whole._card_bytes() is not None
    cut_up = replace(whole, facts=gpu.facts(CARDS[2:3]))
    with pytest.raises(ValueError, match="not known"):
        cut_up._card_bytes()()
