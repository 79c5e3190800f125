"""How `exgrpo experience` shows what it did."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verl_ext.text import one_line, printable

# What became of a trace, in the order of a table: field of the report, what it says.
FATES = {
    "imported": "stored", "failures": "refused by the reward", "not_graded": "the grader did not finish",
    "unmatched": "of no question of this run", "retired": "of a retired question", "overlong": "too long",
    "duplicates": "stored already", "bad": "not readable",
}  # fmt: skip
AMONG = {
    "kept_failures": "failures, kept", "cut": "cut at the limit", "measured": "with log-probs of their own",
    "scored": "scored by the start policy", "one": "with pi_past = 1 (none)",
}  # fmt: skip


def show_import(console: Console, report: dict) -> None:
    """Counts, sources and rates of an import."""
    counts = Table(f"{report['read']:,} traces", "", title=f"into {one_line(report['into'])}")
    for name, label in FATES.items():
        if report[name] or name == "imported":
            counts.add_row(label, f"{report[name]:,}")
    for name, label in AMONG.items():
        if report[name]:
            counts.add_row(f"  {label}", f"{report[name]:,}")
    counts.add_row("questions that have some", f"{report['questions']:,}")
    console.print(counts)
    for source, number in report["sources"].items():
        console.print(Text(f"{number:,} from {one_line(source)}"))
    rates = report["traces_per_second"]
    console.print(f"{rates['all']:,.0f} traces a second, {rates['without_grading']:,.0f} without grading and scoring")
    for text in report["bad_rows"]:
        console.print(Text(printable(text), style="yellow"), soft_wrap=True)


def show_export(console: Console, report: dict) -> None:
    """The file, and how much is in it."""
    found = f"{report['rows']:,} rows ({report['form']}) of {report['trajectories']:,} trajectories"
    console.print(Text(f"wrote {printable(report['written'])}: {found}"), soft_wrap=True)
