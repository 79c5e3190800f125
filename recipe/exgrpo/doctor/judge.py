"""Verdicts on a start: functions of what it logged, of its files and of its configuration, so that a recorded run is judged as
one of this machine is."""

import math
from collections.abc import Iterator

from recipe.exgrpo.checks.memory import SLEEPING, cpu_bytes, estimate_gpu
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.checks.sizes import GIB, gb, gib
from recipe.exgrpo.doctor.plan import BASELINE, EXGRPO, LORA, RESUME, Start
from recipe.exgrpo.doctor.sampling import PHASES, peaks
from recipe.exgrpo.doctor.training import Outcome
from recipe.exgrpo.doctor.verdicts import FAILED, OK, SKIPPED, WARNING, Figure, Verdict, graded
from recipe.exgrpo.runs.folder import TrackerError, followed

# Mean over sequences of |mean log-prob by vLLM - by the trainer|, nats (`rollout_corr/log_ppl_abs_diff`). float32: rounding,
# measured on CPU. bfloat16: a logit has 8 bits, and no GPU has been measured; a sync that fails shows as 0.1 and more.
GAP = "rollout_corr/log_ppl_abs_diff"
FINE_GAP, BAD_GAP = {"float32": 1e-4, "bfloat16": 0.02}, {"float32": 1e-2, "bfloat16": 0.1}
ABOVE_ESTIMATE = 1.1  # of a peak over its estimate, from which the estimate is too low to be relied upon
ROWS, STORED = "experience/replayed_rows", "experience/buffer_trajectories"


def judge(start: Start, outcome: Outcome, run: Run) -> Iterator[Verdict]:
    """Everything that is said about a start; of one that failed, why, and the memory it took."""
    ended = _ended(start, outcome)
    yield ended
    if ended.verdict == OK:
        yield _learnt(start, outcome)
        yield from _replay(start, outcome)
        yield _gap(start, outcome, run)
    if start.kind in (EXGRPO, LORA):
        yield memory_verdict(start, outcome, run)
    if ended.verdict == OK and start.kind == EXGRPO:
        yield _speed(start, outcome)
        yield _saved(start)


def skipped(start: Start, why: str) -> Verdict:
    """A start that was not made."""
    return Verdict(start.section, start.kind, SKIPPED, why)


def _ended(start: Start, outcome: Outcome) -> Verdict:
    """Whether it came to its end with every step."""
    first = 3 if start.kind == RESUME else 1
    wanted, found = list(range(first, start.steps + 1)), sorted(outcome.metrics)
    figures: dict[str, Figure] = {"exit_code": outcome.code, "seconds": round(outcome.seconds, 1), "steps": len(found)}
    if outcome.code != 0:
        steps = f"after step {found[-1]}" if found else "before its first step"
        return Verdict(start.section, start.kind, FAILED, f"ended {steps}: {outcome.cause}", figures)
    if found != wanted:
        return Verdict(start.section, start.kind, FAILED, f"logged steps {found} instead of {wanted}", figures)
    words = f"continued at step {first}" if start.kind == RESUME else f"{len(found)} steps"
    return Verdict(start.section, start.kind, OK, f"{words}, {outcome.seconds:.0f} s with start and end", figures)


def _learnt(start: Start, outcome: Outcome) -> Verdict:
    """Every update has a gradient and none was skipped."""
    norms = [_number(row, "actor/grad_norm") for row in outcome.metrics.values()]
    skips = sum(_number(row, "actor/skipped_updates", 0.0) for row in outcome.metrics.values())
    sound = all(math.isfinite(norm) and norm > 0 for norm in norms) and not skips
    shown = ", ".join(f"{norm:.3g}" for norm in norms)
    sentence = f"gradient norms {shown}" + (f", {skips:g} updates skipped" if skips else "")
    figures = {"grad_norm": norms[-1], "skipped_updates": skips}
    return Verdict(start.section, f"{start.kind} updates", OK if sound else FAILED, sentence, figures)


def _replay(start: Start, outcome: Outcome) -> Iterator[Verdict]:
    """The baseline replays nothing and stores nothing; ExGRPO replays from its second step, a resumed run from its first: what
    it replays then is from before."""
    last = outcome.metrics[max(outcome.metrics)]
    rows, stored = _number(last, ROWS, 0.0), _number(last, STORED, 0.0)
    figures = {"replayed_rows": rows, "stored": stored, "importance": last.get("actor/replay_ratio_mean")}
    check = f"{start.kind} replay"
    if start.kind == BASELINE:
        sound, sentence = rows == stored == 0, f"{rows:g} stored trajectories in the update, {stored:g} in the store"
    else:
        sound = rows > 0 and stored > 0
        sentence = f"{rows:g} of {stored:g} stored trajectories in the update of step {max(outcome.metrics)}"
    yield Verdict(start.section, check, OK if sound else FAILED, sentence, figures)


def _gap(start: Start, outcome: Outcome, run: Run) -> Verdict:
    """vLLM's log-probs against the trainer's: of the same weights, as long as the weight sync works."""
    found = [_number(row, GAP) for row in outcome.metrics.values()]
    dtype, worst = run.rollout.dtype, max(found, key=lambda gap: math.inf if math.isnan(gap) else gap)
    verdict = graded(worst, FINE_GAP.get(dtype, FINE_GAP["bfloat16"]), BAD_GAP.get(dtype, BAD_GAP["bfloat16"]))
    last = outcome.metrics[max(outcome.metrics)]
    sentence = f"vLLM and the trainer differ by {worst:.1e} nats a token in {dtype}"
    if verdict != OK:
        sentence += f", {FINE_GAP.get(dtype, FINE_GAP['bfloat16']):g} is usual (docs/troubleshooting.md)"
    names = {"probs_diff_mean": "training/rollout_probs_diff_mean", "probs_diff_max": "training/rollout_probs_diff_max"}
    figures = {"gap_nats": worst, "dtype": dtype} | {short: last.get(name) for short, name in names.items()}
    return Verdict(start.section, f"{start.kind} log-probs", verdict, sentence, figures)


def memory_verdict(start: Start, outcome: Outcome, run: Run) -> Verdict:
    """Peak memory of each phase against the estimate of `exgrpo check`."""
    found, estimated = peaks(outcome.memory, outcome.rows), estimates(run)
    figures: dict[str, Figure] = {}
    for phase in PHASES:
        figures |= {f"{phase}_gib": _gib(found[phase]), f"{phase}_estimate_gib": _gib(estimated[phase])}
    last = outcome.metrics.get(max(outcome.metrics, default=0), {})
    figures["trainer_allocated_gib"] = last.get("actor/perf/max_memory_allocated_gb")
    check, seen = f"{start.kind} memory", {phase: size for phase, size in found.items() if size is not None}
    if not seen:
        return Verdict(start.section, check, SKIPPED, "no memory was read: nvidia-smi, or a card in instances", figures)
    parts = (f"{phase} {gib(seen[phase])} (estimate {gib(estimated[phase])})" for phase in seen)
    above = [phase for phase in seen if seen[phase] > ABOVE_ESTIMATE * estimated[phase]]
    sentence = "peaks: " + ", ".join(parts) + (f"; {', '.join(above)} above the estimate" if above else "")
    return Verdict(start.section, check, WARNING if above else OK, sentence, figures)


def estimates(run: Run) -> dict[str, float]:
    """Phase -> bytes that `exgrpo check` expects: on the card, with the vLLM that sleeps beside loading and update, and at the
    start also what vLLM takes for the first time; on CPU, where everything meets in one memory, the same sum for each."""
    card = run.config.preset.gpu_memory_gib
    if run.config.trainer.device == "cpu":
        return dict.fromkeys(PHASES, cpu_bytes(run, run.shape))
    estimate = estimate_gpu(run, run.shape, card * GIB)
    start = max(estimate.start + SLEEPING, estimate.rollout)
    return {"start": start, "rollout": estimate.rollout, "update": estimate.update + SLEEPING}


def _speed(start: Start, outcome: Outcome) -> Verdict:
    """Of the last step, which is past the warming up."""
    last = outcome.metrics[max(outcome.metrics)]
    rate, seconds = _number(last, "perf/throughput"), _number(last, "timing_s/step")
    figures = {"tokens_per_second": rate, "step_s": seconds} | {
        f"{part}_s": last.get(f"timing_s/{part}") for part in ("gen", "old_log_prob", "update_actor", "update_weights")
    }
    sentence = f"{rate:,.0f} tokens a second, prompts included, in a step of {seconds:.1f} s"
    return Verdict(start.section, f"{start.kind} speed", OK if rate > 0 else FAILED, sentence, figures)


def _saved(start: Start) -> Verdict:
    """The checkpoint is whole and is the one that a start would find."""
    check = f"{start.kind} checkpoint"
    try:
        saved, _ = followed(start.run)
    except TrackerError as problem:
        return Verdict(start.section, check, FAILED, str(problem))
    if saved is None or saved.problems:
        problem = "; ".join(saved.problems) if saved else "none was saved"
        return Verdict(start.section, check, FAILED, problem)
    sentence, figures = f"step {saved.step}, whole, {gb(saved.bytes)}", {"bytes": saved.bytes, "step": saved.step}
    return Verdict(start.section, check, OK, sentence, figures)


def _gib(size: float | None) -> float | None:
    return None if size is None else round(size / GIB, 3)


def _number(row: dict, name: str, default: float = math.nan) -> float:
    value = row.get(name)
    return default if value is None else float(value)
