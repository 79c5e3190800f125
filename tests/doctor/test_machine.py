"""Facts about the machine become verdicts; nvidia-smi's answers are CONSTRUCTED (tests/helpers/gpu_recordings.py)."""

import subprocess

import gpu_recordings as gpu
import pytest

from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.checks.sizes import GIB, MIB
from recipe.exgrpo.doctor import cards, collective
from recipe.exgrpo.doctor.cards import read_cards, used_bytes, visible
from recipe.exgrpo.doctor.collective import collective_verdict
from recipe.exgrpo.doctor.locks import LOCKS, differences, lock_verdict, read_lock
from recipe.exgrpo.doctor.machine import machine_verdicts
from recipe.exgrpo.doctor.plan import Device, starts
from recipe.exgrpo.doctor.process import Answer
from recipe.exgrpo.doctor.speed import ratio_verdict
from recipe.exgrpo.doctor.verdicts import FAILED, OK, WARNING, Verdict, graded

SUMMED = '{"version": "NCCL 2.28.9", "ranks": 2, "sum": %s, "expected": 2, "seconds": 0.001}\n'
RTX, H100, MIG, T4, QUADRO = CARDS = read_cards(gpu.NVIDIA_SMI)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return {kind: Run.of(starts("toy", out, device)[0].compose()) for kind, device in DEVICES.items()}


DEVICES = {"cuda": Device("cuda", 24.0), "cpu": Device("cpu")}


def verdicts(runs, kind: str = "cuda", **changed) -> dict:
    found = gpu.facts(**({"cards": [RTX]} | changed))
    return {verdict.check: verdict for verdict in machine_verdicts(found, DEVICES[kind], runs[kind])}


def test_an_answer_of_nvidia_smi_is_read():
    assert (RTX.name, RTX.total, RTX.used, RTX.capability, RTX.mig) == (
        *("NVIDIA GeForce RTX 4090", 24564 * MIB, 312 * MIB, 8.9, False),
    )
    assert (T4.capability, T4.driver, MIG.mig) == (0.0, "470.57.02", True)
    assert [card.sold_as for card in CARDS] == [24, 80, 40, 15.0, 24]


def test_visible_cards_are_those_of_the_environment_in_its_order():
    assert visible(CARDS, {}) == CARDS
    assert visible(CARDS, {"CUDA_VISIBLE_DEVICES": "1,0"}) == [H100, RTX]
    assert visible(CARDS, {"CUDA_VISIBLE_DEVICES": "GPU-3333"}) == [MIG]
    assert visible(CARDS, {"CUDA_VISIBLE_DEVICES": ""}) == []


def test_only_questions_are_put_to_the_card(monkeypatch):
    asked = []

    def run(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "0, 312\n1, 1024\n", "")

    monkeypatch.setattr(cards.subprocess, "run", run)
    assert used_bytes(H100) == 1024 * MIB
    assert asked == [["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]]


def test_a_sound_machine(runs):
    found = verdicts(runs)
    assert {name: one.verdict for name, one in found.items() if name != "environment"} == dict.fromkeys(
        ("device", "card", "cores", "memory", "disk", "shm"), OK
    )
    assert found["card"].figures["compute_capability"] == 8.9


@pytest.mark.parametrize(
    ("card", "verdict", "words"),
    [
        (QUADRO, FAILED, "no bfloat16"),
        (MIG, WARNING, "2.1 GiB of it are in use by others; it is cut into instances"),
        (T4, OK, "Tesla T4"),  # its driver is too old to say what it can do
    ],
)
def test_cards_that_are_not_as_they_should_be(runs, card, verdict, words):
    found = verdicts(runs, cards=[card])["card"]
    assert found.verdict == verdict
    assert words in found.sentence


def test_little_of_something_is_a_warning(runs):
    found = verdicts(runs, available=6 * GIB, disk_free=int(2e9), shm_total=64 * MIB)
    assert {found[name].verdict for name in ("memory", "disk", "shm")} == {WARNING}
    assert "--shm-size" in found["shm"].sentence


def test_no_card_named_is_a_warning(runs):
    assert verdicts(runs, cards=[])["card"].verdict == WARNING


def test_a_driver_that_this_torch_does_not_use_is_said(runs):
    found = verdicts(runs, "cpu", torch="2.13.0+cpu")
    assert found["device"].verdict == WARNING
    assert "make setup-gpu" in found["device"].sentence
    assert "card" not in found


def test_packages_are_held_against_the_lock_of_the_device():
    lock = read_lock(LOCKS["cuda"])
    assert lock["torch"] == "2.11.0"
    as_locked = lambda name: lock.get(name, "0.0")  # noqa: E731
    assert lock_verdict("cuda", as_locked).verdict == OK
    other = lock_verdict("cuda", lambda name: {"torch": "2.10.0+cu128", "click": None}.get(name, as_locked(name)))
    assert other.verdict == WARNING
    assert other.sentence.endswith("requirements-gpu.lock: torch 2.10.0+cu128 (2.11.0), click missing (8.5.1)")
    assert other.figures["differ"] == 2


def test_local_versions_are_the_same_package():
    assert differences({"torch": "2.13.0"}, lambda _: "2.13.0+cpu") == {}
    assert differences({"torch": "2.13.0"}, lambda _: None) == {"torch": ("2.13.0", None)}


@pytest.mark.parametrize(
    ("answer", "verdict", "words"),
    [
        (Answer(0, SUMMED % "2.0", ""), OK, "1.0 ms"),
        (Answer(0, SUMMED % "1.0", ""), FAILED, "wrong"),
        (Answer(1, "", "Traceback\nncclUnhandledCudaError: no kernel image\n"), FAILED, "failed: ncclUnhandledCudaError"),
        (Answer(None, "", ""), FAILED, "had no end within"),
    ],
)  # fmt: skip
def test_a_collective_is_right_wrong_broken_or_endless(monkeypatch, answer, verdict, words):
    monkeypatch.setattr(collective, "ask", lambda *_: answer)
    found = collective_verdict("nccl", 2)
    assert found.verdict == verdict
    assert words in found.sentence


@pytest.mark.parametrize(("ratio", "verdict"), [(1.02, OK), (1.5, WARNING)])
def test_a_step_that_takes_longer_than_the_papers_is_a_warning(ratio, verdict):
    figures = {"step_ratio": ratio, "step_s_exgrpo": ratio, "step_s_on_policy": 1.0, "steps_measured": 10}
    assert ratio_verdict(figures).verdict == verdict


def test_verdicts_are_of_a_known_kind():
    with pytest.raises(ValueError, match="must be one of"):
        Verdict("toy", "x", "fine", "")
    assert [graded(value, 1, 2) for value in (1, 2, 3, float("nan"))] == [OK, WARNING, FAILED, FAILED]
