"""The console script `exgrpo`: sub-commands, each a module with `add_arguments(parser)` and `run(args) -> exit code`.

A module is imported only when its command is called, so that `exgrpo inspect` needs neither Ray nor verl.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "browse": (
        "recipe.exgrpo.cli.browse",
        "a page on a run: curves, buckets, questions, trajectories, what was replayed",
    ),
    "check": ("recipe.exgrpo.cli.check", "say whether a run would start and fit, without a GPU"),
    "config": ("recipe.exgrpo.cli.config", "compare a run's settings with the paper's"),
    "doctor": ("recipe.exgrpo.cli.doctor", "measure this machine by short runs, for a report that can be sent in"),
    "evaluate": ("recipe.exgrpo.cli.evaluate", "sample a model on benchmarks, grade, and report beside the paper"),
    "experience": ("recipe.exgrpo.cli.experience", "import traces into a state that runs start from, export states"),
    "inspect": ("recipe.exgrpo.cli.inspect", "look into, verify, compare, grade or export saved experience"),
    "lab": ("recipe.exgrpo.cli.lab", "compare variants of the algorithm on tiny models, minutes on a CPU"),
    "metrics": ("recipe.exgrpo.cli.metrics", "what the metrics of a run mean, one sentence each"),
    "report": ("recipe.exgrpo.cli.report", "curves and tables of training runs, paired by seed"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `exgrpo COMMAND ...`; returns the exit code (2 for a wrong command line, as argparse has it)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="exgrpo", description="ExGRPO: experience replay for GRPO, on verl.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        # The help of `exgrpo` itself must not import every command.
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if argv[:1] == [name]:
            loaded = importlib.import_module(module)
            loaded.add_arguments(command)
            command.set_defaults(run=loaded.run)
    args = parser.parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
