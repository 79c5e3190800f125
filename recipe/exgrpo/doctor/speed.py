"""`scripts/bench_step.py` on this machine: seconds of an ExGRPO step over those of an on-policy step, in one run."""

import json
import sys

from recipe.exgrpo.doctor.plan import Device
from recipe.exgrpo.doctor.process import ask
from recipe.exgrpo.doctor.verdicts import FAILED, OK, WARNING, Verdict
from recipe.exgrpo.presets.compose import ROOT

STEPS, QUESTIONS = 30, 8  # ten pairs of steps after the ten that warm up
PUBLISHED = 1.19  # largest ratio of the paper, 7B: 184.9 s over 155.4 s (docs/reproduce.md)


def bench(device: Device, limit_s: float) -> Verdict:
    """Run the benchmark; failed with its last line where it does not come to an end."""
    command = [
        sys.executable,
        str(ROOT / "scripts/bench_step.py"),
        "--steps",
        str(STEPS),
        "--questions",
        str(QUESTIONS),
    ]
    command += ["--same-questions", "--json", "--hardware", device.hardware, *device.overrides]
    answer = ask(command, limit_s)
    if answer.code != 0:
        how = f"exit code {answer.code}: {answer.last_word}" if answer.code else f"no end after {limit_s:.0f} s"
        return Verdict("speed", "step ratio", FAILED, how)
    return ratio_verdict(json.loads(answer.out.splitlines()[-1]))


def ratio_verdict(figures: dict[str, float]) -> Verdict:
    """A warning above what the paper has on its own stack."""
    ratio = figures["step_ratio"]
    sentence = (
        f"a step of ExGRPO takes {ratio:.2f} of an on-policy one ({figures['step_s_exgrpo']:.2f} s, "
        f"{figures['step_s_on_policy']:.2f} s; {figures['steps_measured']:.0f} pairs, toy model)"
    )
    if ratio > PUBLISHED:
        sentence += f"; the paper has up to {PUBLISHED}"
    return Verdict("speed", "step ratio", OK if ratio <= PUBLISHED else WARNING, sentence, figures)
