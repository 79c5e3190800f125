"""What a GPU would have said. CONSTRUCTED, not recorded: no GPU run has been made by this project. The forms are those that
the tools document (`nvidia-smi --help-query-gpu`, CSV without header and units) and those of a metrics.jsonl that a CPU run
wrote here; sizes and speeds are invented, of the order that the memory estimate expects."""

from recipe.exgrpo.checks.machine import Machine
from recipe.exgrpo.checks.sizes import GIB
from recipe.exgrpo.doctor.machine import Facts
from recipe.exgrpo.doctor.plan import BASELINE, RESUME, Start
from recipe.exgrpo.doctor.training import Outcome

NVIDIA_SMI = """\
0, GPU-11111111-aaaa-bbbb-cccc-000000000000, NVIDIA GeForce RTX 4090, 24564, 312, 580.65.06, 8.9, [N/A]
1, GPU-22222222-aaaa-bbbb-cccc-000000000000, NVIDIA H100 80GB HBM3, 81559, 4, 580.65.06, 9.0, Disabled
2, GPU-33333333-aaaa-bbbb-cccc-000000000000, NVIDIA A100-SXM4-40GB, 40960, 2148, 580.65.06, 8.0, Enabled
3, GPU-44444444-aaaa-bbbb-cccc-000000000000, Tesla T4, 15360, 3, 470.57.02, [N/A], [N/A]
4, GPU-55555555-aaaa-bbbb-cccc-000000000000, Quadro RTX 6000, 24576, 0, 580.65.06, 7.5, [N/A]
"""
BEGAN = 1_000_000.0  # seconds since the epoch
LOADED_S, GEN_S, STEP_S = 60.0, 5.0, 9.0
HERE = Machine(python=(3, 12), glibc=(2, 35), driver=580, accelerator=True, cores=26)


def facts(cards=(), **changed) -> Facts:
    """A machine with one of these cards, 128 GiB, and shared memory as Docker's --shm-size=8g gives it."""
    known = {"machine": HERE, "ram": 128 * GIB, "available": 120 * GIB, "disk_free": int(200e9), "torch": "2.11.0"}
    return Facts(**(known | {"shm_total": 8 * GIB, "cards": cards} | changed))


def row(step: int, replayed: int = 0, stored: int = 0, gap: float = 0.004, **changed) -> dict:
    """A line of metrics.jsonl, as far as the doctor reads it, with some more of what is in it."""
    return {
        "step": step,
        "actor/grad_norm": 0.42,
        "actor/skipped_updates": 0.0,
        "actor/perf/max_memory_allocated_gb": 12.5,
        "actor/replay_ratio_mean": 1.08,
        "rollout_corr/log_ppl_abs_diff": gap,
        "training/rollout_probs_diff_mean": 0.002,
        "training/rollout_probs_diff_max": 0.09,
        "experience/replayed_rows": replayed,
        "experience/buffer_trajectories": stored,
        "perf/throughput": 7123.0,
        "timing_s/step": STEP_S,
        "timing_s/gen": GEN_S,
        "timing_s/old_log_prob": 1.0,
        "timing_s/update_actor": 2.5,
        "timing_s/update_weights": 0.4,
    } | changed


def rows_of(start: Start, **changed) -> list[tuple[float, dict]]:
    """What a sound start logs, and when it is seen: the baseline replays nothing, ExGRPO from its second step on."""
    steps = [3] if start.kind == RESUME else range(1, start.steps + 1)
    replays = start.kind != BASELINE
    return [
        (
            BEGAN + LOADED_S + STEP_S * (i + 1),
            row(step, 8 * (replays and step > 1), 60 * step * replays, **changed),
        )
        for i, step in enumerate(steps)
    ]


def memory(start_gib: float = 3.0, rollout_gib: float = 12.0, update_gib: float = 9.0) -> list[tuple[float, float]]:
    """Samples of a card's memory, a second apart, over the start and two steps."""
    samples = []
    for second in range(int(LOADED_S + 2 * STEP_S)):
        into = (second - LOADED_S) % STEP_S
        size = start_gib if second < LOADED_S else rollout_gib if into < GEN_S else update_gib
        samples.append((BEGAN + second, size * GIB))
    return samples


def outcome(start: Start, **changed) -> Outcome:
    """A sound start."""
    log = ["INFO: the run", "done, step 2 of 2: RUN."]
    known = {"code": 0, "seconds": 85.0, "rows": rows_of(start), "log": log}
    return Outcome(**(known | {"memory": memory(update_gib=4.0 if start.section == "toy" else 9.0)} | changed))
