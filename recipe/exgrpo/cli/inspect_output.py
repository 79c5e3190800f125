"""How `exgrpo inspect` shows and writes things: rich tables, parquet, JSON lines, histograms."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from verl_ext.files import replacing
from verl_ext.text import one_line, printable

BARS = 40  # of a histogram
SHOWN = 20  # entries of a list in a table; --json has all
MEASURES = {
    "age_steps": "age, steps", "use_count": "uses", "entropy": "entropy, nats per token",
    "nll": "negative log-likelihood, nats per token", "drift": "log-prob drift (mean square)",
    "advantage": "advantage at collection", "reward": "reward", "length": "length, tokens",
}  # fmt: skip
LOG_PROBS = {"scored": "log-probs of the start policy", "one": "without log-probs (pi_past = 1)"}
FACTS = (
    "step", "group_size", "questions", "eligible", "cooling", "retired", "trajectories", "groups", "with_prompt", "tokens",
)  # fmt: skip


def show_summary(console: Console, report: dict) -> None:
    """Tables of occupancy, buckets and distributions."""
    facts = Table("experience", "", title=printable(report["path"]))
    for key in FACTS:
        facts.add_row(key.replace("_", " "), f"{report[key]:,}")
    facts.add_row("bytes in memory", f"{report['bytes']:,}")
    facts.add_row("bytes on disk", f"{report['checkpoint']['bytes']:,} in {report['checkpoint']['files']} files")
    facts.add_row("dead trajectories on disk", f"{report['checkpoint']['dead_trajectories']:,}")
    facts.add_row("evicted so far", ", ".join(f"{reason} {n:,}" for reason, n in report["evicted"].items()))
    for key in ("policy", "model", "tokenizer"):
        facts.add_row(key, Text(printable(str(report["fingerprint"].get(key)))))
    console.print(facts)
    origins = Table("source", "log-probs", "temperature", "trajectories", "chat template")
    for origin in report["origins"]:
        values = (origin[name] for name in ("source", "behaviour", "temperature", "trajectories", "chat_template"))
        origins.add_row(*(Text(one_line(str(value))) for value in values))
    console.print(origins)
    buckets = Table("successes of K", "eligible questions", "")
    most = max(report["buckets"].values(), default=0) or 1
    for k, n in report["buckets"].items():
        buckets.add_row(f"{k}/{report['group_size']}", f"{n:,}", "█" * round(40 * n / most))
    console.print(buckets)
    measures = Table("per trajectory", *(columns := ("n", "mean", "min", "p10", "p50", "p90", "max")))
    for key, label in MEASURES.items():
        measures.add_row(label, *(_number(report[key].get(column)) for column in columns))
    console.print(measures)


def show_question(console: Console, report: dict) -> None:
    """A question's state and its trajectories, decoded where a tokenizer was found."""
    count = "no success count" if report["latest_count"] is None else f"latest success count {report['latest_count']}"
    state = "retired" if report["retired"] else count
    console.print(
        Text(f"question {printable(report['question'])}: {state}, {len(report['trajectories'])} trajectories")
    )
    for t in report["trajectories"]:
        console.rule(Text(f"trajectory {t['row']}: {t['length']} tokens, reward {t['reward']:g}"))
        console.print(Text(printable(", ".join(_about(t)))))
        console.print(Text(printable(t["text"]) if report["decoded"] else f"token ids {t['token_ids']}"))
    if not report["decoded"]:
        console.print("No tokenizer is beside this experience; name one with --tokenizer to see text.")


def _about(t: dict) -> Iterator[str]:
    """Clauses on where a trajectory comes from and what has happened to it."""
    yield f"collected at step {t['birth_step']} ({t['source']}, temperature {t['temperature']:g})"
    if t["behaviour"] != "measured":
        yield LOG_PROBS[t["behaviour"]]
    if t["group"] is not None:
        where = f"group {t['group']} with {t['group_successes']} of {t['group_size']} solved"
        yield f"{where}, advantage {t['advantage']:g}"
    yield "1 use" if t["use_count"] == 1 else f"{t['use_count']} uses"
    scores = [f"{name} {t[name]:.3f}" for name in ("entropy", "nll", "drift") if t[name] is not None]
    yield ", ".join(scores) or "not scored"
    if others := t["mask"].count(False):
        yield f"{others} of the tokens not the model's own"
    if t["prompt_ids"]:
        yield f"stored with a prompt of {len(t['prompt_ids'])} tokens"


def show_problems(console: Console, report: dict) -> None:
    """The verdict of --verify."""
    if report["intact"]:
        console.print(Text(f"{printable(report['path'])}: intact, every checksum and relation holds"))
    for problem in report["problems"]:
        console.print(
            Text(f"{printable(problem['file'])}: {printable(problem['reason'])}", style="red"), soft_wrap=True
        )


def show_difference(console: Console, report: dict) -> None:
    """What changed from A to B."""
    table = Table("from A to B", "")
    for key, value in report["trajectories"].items():
        table.add_row(f"trajectories in {key}" if key in "ab" else f"trajectories {key}", f"{value:,}")
    for key in ("questions_added", "questions_removed", "retired", "unretired", "moved"):
        table.add_row(key.replace("_", " "), f"{len(report[key]):,}")
    console.print(table)
    moves = Table("question", "count in A", "count in B", title=f"moved (first {SHOWN})")
    for move in report["moved"][:SHOWN]:
        moves.add_row(Text(printable(move["question"])), _number(move["from"]), _number(move["to"]))
    if report["moved"]:
        console.print(moves)


def show_regraded(console: Console, report: dict) -> None:
    """What --regrade found."""
    failing = report["no_longer_pass"]
    console.print(
        f"{report['graded']:,} graded, {len(failing):,} no longer pass, {report['timeout_or_error']:,} not finished by "
        f"the grader, {report['not_in_data']:,} of questions that are not in the data"
    )
    table = Table(
        "question", "trajectory", "stored", "now", "extracted answer", title=f"no longer pass (first {SHOWN})"
    )
    for r in failing[:SHOWN]:
        values = (printable(r["question"]), str(r["row"]), _number(r["stored"]), _number(r["now"]))
        table.add_row(*map(Text, values), Text(printable(r["extracted"])))
    if failing:
        console.print(table)
    if "applied" in report:
        console.print(Text(f"wrote {printable(report['applied'])}: {report['left']:,} trajectories are left"))


def show_written(console: Console, report: dict) -> None:
    """The files of --export and --plot."""
    for file in report["written"]:
        console.print(Text(f"wrote {printable(file)}"))


def plot(path: Path, report: dict, columns: dict) -> None:
    """Histograms of buckets, ages and entropies as one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    buckets, ages, entropies = figure.subplots(1, 3)
    buckets.bar(list(report["buckets"]), list(report["buckets"].values()))
    buckets.set(title="Eligible questions", xlabel=f"latest successes of {report['group_size']}", ylabel="questions")
    width = max(1, math.ceil(np.ptp(columns["age_steps"]) / BARS)) if len(columns["age_steps"]) else 1
    ages.hist(columns["age_steps"], bins=np.arange(0, columns["age_steps"].max(initial=0) + width + 1, width))
    ages.set(title="Age", xlabel=f"steps before step {report['step']}", ylabel="trajectories")
    scored = columns["entropy"][np.isfinite(columns["entropy"])]
    entropies.hist(scored, bins=BARS)
    entropies.set(title=f"Entropy when last scored ({len(scored):,} scored)", xlabel="nats per token")
    with replacing(path) as new:
        FigureCanvasAgg(figure).print_png(str(new))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
