"""Worker processes: one for each group of accelerators, each with chunks of its own, watched by this one."""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_ext.evaluation import EvaluationError
from verl_ext.evaluation.journal import shard_file
from verl_ext.evaluation.questions import Item
from verl_ext.platform import accelerator_visible, prepare_environment

PATIENCE_S = 10.0  # for workers to end when asked, before they are killed
LOG_LINES = 5


class WorkerError(EvaluationError):
    """A worker failed while generating; what is complete is kept."""


@dataclass(frozen=True)
class Work:
    """What all workers share.

    Attributes:
        engine: arguments of vLLM's `LLM`.
        sampling: arguments of `SamplingParams`, without seed and length.
        grading: fields of RewardOptions.
        questions: benchmark -> question -> prompt_token_ids, max_tokens, ground_truth, think_format.
        seed: the evaluation's.
    """

    engine: dict[str, Any]
    sampling: dict[str, float]
    grading: dict[str, Any]
    questions: dict[str, dict[str, dict[str, Any]]]
    seed: int

    def job(self, chunks: Sequence[range], items: Sequence[Item], output: Path) -> dict[str, Any]:
        """One worker's job, as JSON."""
        rows = [[vars(items[i]) | {"item": i, "seed": items[i].seed(self.seed)} for i in chunk] for chunk in chunks]
        return {
            "engine": self.engine,
            "sampling": self.sampling,
            "grading": self.grading,
            "questions": self.questions,
            "chunks": rows,
            "output": str(output),
        }


def visible_devices(environment: Mapping[str, str] = os.environ, dev: Path = Path("/dev")) -> list[str]:
    """Ids of the accelerators this process may use: CUDA_VISIBLE_DEVICES, else NVIDIA's device nodes; [] on CPU."""
    if not accelerator_visible(dict(environment), dev):
        return []
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device.strip() for device in named.split(",")]
    return [str(i) for i in range(len(list(dev.glob("nvidia[0-9]*"))) or 1)]


def environments(shards: int, tensor_parallel: int, devices: Sequence[str]) -> list[dict[str, str]]:
    """Environment of each worker: its accelerators, or its part of the cores. Raises EvaluationError if too few."""
    if not devices:
        base = os.environ.copy()
        prepare_environment(base)
        threads = max(1, int(base["OMP_NUM_THREADS"]) // shards)
        # vLLM would bind every worker to the same cores, and leave the second thread of each core idle.
        return [base | {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}] * shards
    if shards * tensor_parallel > len(devices):
        raise EvaluationError(
            f"{shards} processes of {tensor_parallel} accelerators were asked for, {len(devices)} are visible"
        )
    groups = [devices[i * tensor_parallel : (i + 1) * tensor_parallel] for i in range(shards)]
    return [os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]


def run(
    work: Work,
    shares: Sequence[Sequence[range]],
    items: Sequence[Item],
    folder: Path,
    environment: Sequence[Mapping[str, str]],
    advance: Callable[[int, int], None],
) -> None:
    """Generate all shares, each in a process of its own; returns when all are done.

    Args:
        advance: called with the samples and tokens just generated.

    Raises:
        WorkerError: a worker failed; the others are stopped.
    """
    with _workers() as workers, selectors.DefaultSelector() as selector, tempfile.TemporaryDirectory() as jobs:
        for shard, chunks in enumerate(shares):
            job = Path(jobs) / f"{shard}.json"
            job.write_text(json.dumps(work.job(chunks, items, shard_file(folder, shard).absolute())))
            process, pipe = _start(job, folder / f"worker.{shard}.log", environment[shard])
            workers.append(process)
            selector.register(os.fdopen(pipe, "r"), selectors.EVENT_READ, [shard, 0, 0])
        while selector.get_map():
            for key, _ in selector.select():
                if not _read_progress(key, advance):
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    _check(workers[key.data[0]], folder / f"worker.{key.data[0]}.log")


def _start(job: Path, log: Path, environment: Mapping[str, str]) -> tuple[subprocess.Popen, int]:
    """A worker in a process group of its own, and the pipe on which it reports."""
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "verl_ext.evaluation.worker", str(job), str(writing)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=[writing],
            start_new_session=True,
        )
    os.close(writing)
    return process, reading


def _read_progress(key: selectors.SelectorKey, advance: Callable[[int, int], None]) -> bool:
    """Pass on one report; False at the end of the pipe."""
    line = key.fileobj.readline()
    if not line.endswith("\n"):
        return False
    samples, tokens = json.loads(line)
    _, old_samples, old_tokens = key.data
    advance(samples - old_samples, tokens - old_tokens)
    key.data[1:] = samples, tokens
    return True


def _check(process: subprocess.Popen, log: Path) -> None:
    if process.wait() != 0:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        tail = " | ".join(lines[-LOG_LINES:])
        raise WorkerError(f"a worker ended with exit code {process.returncode}, see {log}: {tail}")


@contextmanager
def _workers() -> Iterator[list[subprocess.Popen]]:
    """A list of processes; however the block is left, none of them nor of their children is left running."""
    started: list[subprocess.Popen] = []
    try:
        yield started
    finally:
        _signal(started, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and any(process.poll() is None for process in started):
            time.sleep(0.05)
        _signal(started, signal.SIGKILL)
        for process in started:
            process.stdin.close()
            process.wait()


def _signal(processes: Sequence[subprocess.Popen], number: int) -> None:
    """Signal whole process groups: a worker's vLLM and grading processes too."""
    for process in processes:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            continue  # it has ended, and all its children with it
