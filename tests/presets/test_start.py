"""Models to start with: their sizes are their model cards', and what each card is said to hold fits by the check's estimate."""

import pytest

from recipe.exgrpo.checks.findings import NOTE
from recipe.exgrpo.checks.lora import adapter_parameters
from recipe.exgrpo.checks.memory import GIB, estimate_gpu, memory_findings
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.checks.shapes import model_shape
from recipe.exgrpo.presets.compose import ROOT, compose, script_overrides

# Hub id -> parameters, in billions, with and without embeddings, as the model's card on the hub has them.
CARDS = {
    "Qwen/Qwen2.5-0.5B-Instruct": (0.49, 0.36),
    "Qwen/Qwen2.5-1.5B": (1.54, 1.31),
    "Qwen/Qwen3-0.6B": (0.6, 0.44),
    "Qwen/Qwen3-1.7B": (1.7, 1.4),
    "Qwen/Qwen3-4B-Base": (4.0, 3.6),
    "Qwen/Qwen3-4B": (4.0, 3.6),
    "HuggingFaceTB/SmolLM2-360M-Instruct": (0.36, None),
}
SMALL = ("qwen3-0.6b", "qwen2.5-0.5b-instruct", "smollm2-360m")
LARGER = ("qwen3-1.7b", "qwen2.5-1.5b")
CASES = [
    *((name, f"gpu_1x{card}{lora}") for name in SMALL for card in (24, 48, 80) for lora in ("", "_lora")),
    *((name, hardware) for name in LARGER for hardware in ("gpu_1x48", "gpu_1x80", "gpu_1x24_lora", "gpu_1x48_lora")),
    ("qwen3-4b-base", "gpu"),
]


@pytest.fixture(autouse=True)
def as_shipped(monkeypatch):
    for name in ("MODEL", "TOKENIZER", "TRAIN", "VAL", "RUN", "NNODES", "GPUS", "HARDWARE", "LOGGER", "TINY", "METHOD"):
        monkeypatch.delenv(name, raising=False)


def run_of(*overrides: str) -> Run:
    return Run.of(compose(overrides))


@pytest.mark.parametrize("hub_id", CARDS)
def test_a_pinned_shape_has_its_cards_parameters(hub_id):
    shape, (whole, without) = model_shape(hub_id), CARDS[hub_id]
    assert shape.parameters / 1e9 == pytest.approx(whole, abs=0.025)
    if without is not None:
        assert (shape.parameters - shape.embedding_parameters) / 1e9 == pytest.approx(without, abs=0.035)


@pytest.mark.parametrize(("name", "hardware"), CASES)
def test_the_check_finds_room_for_it(monkeypatch, name, hardware):
    monkeypatch.setenv("HARDWARE", hardware)
    run = Run.of(compose(script_overrides(ROOT / "scripts" / "start" / f"{name}.sh")))
    found = list(memory_findings(run, ram=128 * GIB, trains_here=True))
    assert [finding.text for finding in found if finding.severity != NOTE] == []
    assert any("GPU memory: the update takes" in finding.text for finding in found)


@pytest.mark.parametrize(("name", "hardware"), [("qwen2.5-1.5b", "gpu_1x24"), ("qwen3-1.7b", "gpu_1x24")])
def test_what_is_not_said_to_fit_does_not(name, hardware):
    run = run_of(f"backbone={name}", f"hardware={hardware}")
    assert any(finding.severity != NOTE for finding in memory_findings(run, ram=128 * GIB, trains_here=True))


def test_a_7b_model_trains_by_lora_on_one_card_of_80_gb():
    run = run_of("backbone=qwen2.5-math-7b", "hardware=gpu_1x80_lora")
    found = memory_findings(run, ram=256 * GIB, trains_here=True)
    assert [finding.text for finding in found if finding.severity != NOTE] == []


def test_lora_trains_the_adapters_alone():
    """0.6B of Qwen3, rank 32: projections 1024 <-> 2048 (q, o), 1024 -> 1024 (k, v), 1024 <-> 3072 (3 of the MLP)."""
    run, shape = run_of("backbone=qwen3-0.6b", "hardware=gpu_1x24_lora"), model_shape("Qwen/Qwen3-0.6B")
    each = 32 * 28 * (2 * (1024 + 2048) + 2 * (1024 + 1024) + 3 * (1024 + 3072))
    assert adapter_parameters(run, shape) == each == 20_185_088
    full = estimate_gpu(run_of("backbone=qwen3-0.6b", "hardware=gpu_1x24"), shape, 24 * GIB)
    lora = estimate_gpu(run, shape, 24 * GIB)
    assert full.update - lora.update == 16 * shape.parameters - 4 * shape.parameters - 16 * each
    assert full.fixed - lora.fixed == full.update - lora.update
