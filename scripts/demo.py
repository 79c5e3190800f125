"""Train ExGRPO on the embedded toy task with a live progress line; end with a table and a plot of the curves."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from recipe.exgrpo.browse.page import render
from recipe.exgrpo.browse.sources import read
from verl_ext.files import write_atomically
from verl_ext.metrics_log import read_metrics

ROOT = Path(__file__).resolve().parent.parent
LOG_TAIL = 25


def rows_so_far(path: Path) -> list[dict]:
    """All complete lines of a metrics.jsonl; a line still being written is left for the next look."""
    return read_metrics(path)[0] if path.exists() else []


def command(run: Path, steps: int, arguments: list[str]) -> dict:
    """How the run's script is called, as arguments of `subprocess`."""
    return {
        "args": ["bash", str(ROOT / "scripts/run_exgrpo_toy_cpu.sh"), *arguments],
        "env": os.environ | {"RUN": str(run), "STEPS": str(steps), "PYTHON": sys.executable},
        "cwd": ROOT,
    }


def launch(run: Path, steps: int, overrides: list[str], log: Path) -> subprocess.Popen:
    """Start training in the background, its output in `log`."""
    with log.open("w") as out:
        return subprocess.Popen(**command(run, steps, overrides), stdout=out, stderr=subprocess.STDOUT)


def follow(process: subprocess.Popen, metrics: Path) -> Iterator[dict]:
    """Yield each step's metrics as it is logged, until the run ends."""
    seen = 0
    while True:
        finished = process.poll() is not None
        rows = rows_so_far(metrics)
        yield from rows[seen:]
        seen = len(rows)
        if finished:
            return
        time.sleep(0.5)


def describe(row: dict) -> str:
    """One line on a training step."""
    return (
        f"pass rate {row['batch/pass_rate']:.2f}  replayed {row['experience/replayed_questions']:.0f}  "
        f"in buffer {row['experience/buffer_questions']:.0f}  retired {row['experience/retired_questions']:.0f}"
    )


def watch(process: subprocess.Popen, metrics: Path, steps: int, console: Console) -> None:
    """Show progress until the run ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting Ray, FSDP and vLLM (about a minute)", total=steps)
        for row in follow(process, metrics):
            if "batch/pass_rate" in row:
                progress.update(task, completed=row["step"], description=describe(row))
                if not console.is_terminal and row["step"] % 5 == 0:
                    console.print(f"step {row['step']:3d}  {describe(row)}")


def summary(rows: list[dict]) -> dict[str, float]:
    """The figures of the closing table from a run's metrics."""
    training = [row for row in rows if "batch/pass_rate" in row]
    held_out = [row["val/pass_rate"] for row in rows if "val/pass_rate" in row]
    groups = sum(row["experience/replayed_questions"] for row in training)
    questions = sum(row["batch/questions"] for row in training)
    started = [row["step"] for row in training if row["experience/replayed_questions"] > 0]
    seconds = sorted(row["timing_s/step"] for row in training)
    return {
        "held-out pass rate at start": held_out[0],
        "held-out pass rate at end": held_out[-1],
        "first step with replay": started[0] if started else float("nan"),
        "questions in the buffer": training[-1]["experience/buffer_questions"],
        "trajectories in the buffer": training[-1]["experience/buffer_trajectories"],
        "questions retired": training[-1]["experience/retired_questions"],
        "share of questions replayed": groups / questions,
        "steps per minute": 60 / seconds[len(seconds) // 2],
    }


def plot(rows: list[dict], path: Path) -> None:
    """Curves of pass rate, buffer, ages and weights over steps."""
    training = [row for row in rows if "batch/pass_rate" in row]
    held_out = [row for row in rows if "val/pass_rate" in row]
    steps = [row["step"] for row in training]
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), sharex=True)
    panels = {
        "pass rate": ("batch/pass_rate",),
        "questions": ("experience/buffer_questions", "experience/retired_questions", "experience/replayed_questions"),
        "age of replayed trajectories (steps)": ("experience/age_steps_mean", "experience/age_steps_max"),
        "importance weights": ("actor/replay_ratio_mean", "actor/replay_ess", "actor/replay_shaped_mean"),
    }
    for axis, (title, names) in zip(axes.flat, panels.items(), strict=True):
        for name in names:
            axis.plot(steps, [row.get(name, float("nan")) for row in training], label=name.split("/")[1])
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0, 0].plot([r["step"] for r in held_out], [r["val/pass_rate"] for r in held_out], "o-", label="held-out")
    for axis in axes.flat:
        axis.legend(fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def report(run: Path, console: Console) -> dict[str, float]:
    """Print the table and write `curves.png` for a finished run."""
    rows = rows_so_far(run / "metrics.jsonl")
    figures = summary(rows)
    table = Table(title="ExGRPO on the toy task", show_header=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}" if 0 < abs(value) < 1 else f"{value:.0f}")
    plot(rows, run / "curves.png")
    console.print(table)
    console.print(f"curves: {run / 'curves.png'}   metrics: {run / 'metrics.jsonl'}   log: {run / 'train.log'}")
    return figures


def draw_page(run: Path, console: Console) -> Path:
    """Write the run's page, and name it."""
    page = run / "browse.html"
    content = read(run)
    write_atomically(page, render(content, tokenizer=content.source.tokenizer).html)
    console.print(f"open in a browser: {page}", soft_wrap=True)
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/demo", help="run folder (replaced)")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object at the end")
    parser.add_argument("--dry-run", action="store_true", help="print the run's overrides, one per line, and stop")
    parser.add_argument("overrides", nargs="*", help="hydra overrides, for example exgrpo.policy=on_policy")
    args = parser.parse_args()
    if args.dry_run:
        return subprocess.run(**command(args.out, args.steps, [*args.overrides, "--dry-run"])).returncode
    console = Console()
    if args.out.exists() and any(args.out.iterdir()):
        if not (args.out / "train.log").exists():
            parser.error(f"--out {args.out} is not empty and not a demo run; choose another folder")
        shutil.rmtree(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "train.log"
    process = launch(args.out, args.steps, args.overrides, log)
    try:
        watch(process, args.out / "metrics.jsonl", args.steps, console)
    finally:
        if process.poll() is None:
            process.terminate()
    if process.returncode:
        console.print("".join(log.read_text(errors="replace").splitlines(keepends=True)[-LOG_TAIL:]), markup=False)
        console.print(f"[red]training failed with exit code {process.returncode}; the whole log is {log}[/red]")
        return process.returncode
    figures = report(args.out, console)
    draw_page(args.out, console)
    if args.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
