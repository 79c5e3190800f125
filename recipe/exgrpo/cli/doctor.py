"""`exgrpo doctor`: ten minutes of short runs on this machine, on one card of any size or on CPU; no hub.

  machine  environment against the lock, cores, memory, disk, shared memory, card, an all-reduce
  toy      the toy task: baseline, ExGRPO with a checkpoint, its resume
  model    the same and LoRA, with random weights in the shape of Qwen2.5-0.5B (on CPU: a small one of its family)
  speed    a step of ExGRPO over one of the baseline (scripts/bench_step.py)

Of each run: memory by phase against the estimate of `exgrpo check`, log-probs of vLLM against the trainer's, tokens a second.
Writes doctor.json and doctor.txt, which name no user, host or secret, into --out; nothing of the card is set or reset.
Exit code 0: nothing failed; 1: something did; 2: wrong command line.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from recipe.exgrpo.doctor.cards import Card, query, read_cards, visible
from recipe.exgrpo.doctor.examination import Examination
from recipe.exgrpo.doctor.machine import Facts
from recipe.exgrpo.doctor.plan import SECTIONS, Device
from recipe.exgrpo.doctor.report import FILE, TEXT, Report
from recipe.exgrpo.presets.compose import ROOT
from recipe.exgrpo.runs import lock
from verl_ext.packages import installed
from verl_ext.platform import accelerator_visible

UNKNOWN_CARD = 24.0  # GB that are taken for granted where nvidia-smi does not say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/doctor", help="folder to write to, of doctor alone")
    parser.add_argument(
        "--only", action="append", choices=SECTIONS, metavar="SECTION", help=f"one of {', '.join(SECTIONS)}; repeatable"
    )
    parser.add_argument("--quick", action="store_true", help="the machine, and ExGRPO with its resume on the toy task")
    parser.add_argument(
        "--limit", type=seconds, default=600.0, help="seconds after which a start is ended (%(default)g)"
    )
    parser.add_argument("--json", action="store_true", help="print the content of doctor.json")


def seconds(given: str) -> float:
    """A positive number of the command line."""
    value = float(given)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {given}")
    return value


def run(args: argparse.Namespace) -> int:
    """Examine, write, print; see above for the exit code."""
    problem = refusal(args)
    if problem is None:
        try:
            with lock.hold(args.out):
                report = examine(args)
        except lock.LockedError as held:
            problem = str(held)
        except KeyboardInterrupt:
            Console(stderr=True).print(f"interrupted; what was found until then: {args.out / FILE}", markup=False)
            return 1
    if problem is not None:
        Console(stderr=True).print(f"[red]exgrpo doctor:[/] {escape(problem)}", soft_wrap=True)
        return 2
    if args.json:
        sys.stdout.write((args.out / FILE).read_text(encoding="utf-8"))
    else:
        console = Console()
        console.print((args.out / TEXT).read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
        console.print(f"{args.out / TEXT}: to paste into an issue (docs/reproduce.md)", markup=False, soft_wrap=True)
    return int(report.failed)


def refusal(args: argparse.Namespace) -> str | None:
    """Why nothing can be begun; None where it can."""
    if "RAY_ADDRESS" in os.environ:
        return "RAY_ADDRESS names a cluster and this is about one machine: unset it."
    if args.quick and args.only and not {"machine", "toy"} & set(args.only):
        return f"--quick leaves nothing of {', '.join(args.only)}."
    out = args.out
    if out.is_dir() and any(out.iterdir()) and not (out / FILE).is_file():
        return f"--out {out} is not empty and not a folder of doctor's; name another."
    return None


def examine(args: argparse.Namespace) -> Report:
    """The examination of this machine, in an emptied folder."""
    for path in [path for path in args.out.iterdir() if path.name not in (FILE, lock.NAME)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    cards = cards_here()
    device = device_here(cards)
    with progress(Console(stderr=True)) as told:
        return Examination(
            args.out.absolute(),
            Facts.here(args.out, cards),
            device,
            sections=[name for name in SECTIONS if not args.only or name in args.only],
            quick=args.quick,
            limit_s=args.limit,
            told=told,
        ).run()


def cards_here() -> list[Card]:
    """The GPUs that this process may use; none without nvidia-smi."""
    try:
        return visible(read_cards(query()))
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return []


def device_here(cards: list[Card]) -> Device:
    """What runs of this environment train on, as `verl_ext.platform` chooses it."""
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu" or not accelerator_visible():
        return Device("cpu")
    return Device("cuda", cards[0].sold_as if cards else UNKNOWN_CARD, installed("flash-attn") is not None)


@contextmanager
def progress(console: Console) -> Iterator[Callable[[str], None]]:
    """A line that says what is being done and for how long; where no terminal is, a line for each thing."""
    if not console.is_terminal:
        yield lambda word: console.print(word, markup=False, highlight=False, soft_wrap=True)
        return
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("", total=None)
        yield lambda word: bar.update(task, description=escape(word))
