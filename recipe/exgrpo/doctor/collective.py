"""One all-reduce over the ranks of this machine: NCCL on its GPUs, gloo on CPU. `python -m recipe.exgrpo.doctor.collective
BACKEND RANKS` prints one JSON object, in a process of its own: what hangs or crashes there leaves the doctor alone."""

import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from recipe.exgrpo.doctor.process import ask
from recipe.exgrpo.doctor.verdicts import FAILED, OK, Verdict

LIMIT_S = 180
NUMBERS = 16 * 2**20  # of the tensor that is reduced, float32: 64 MiB
REPEATS = 5


def collective_verdict(backend: str, ranks: int) -> Verdict:
    """Whether it comes to the right sum, and how fast."""
    command = [sys.executable, "-m", "recipe.exgrpo.doctor.collective", backend, str(ranks)]
    answer = ask(command, LIMIT_S)
    if answer.code != 0:
        how = f"failed: {answer.last_word}" if answer.code else f"had no end within {LIMIT_S} s"
        sentence = f"an all-reduce of {ranks} ranks with {backend} {how}"
        return Verdict("machine", "collective", FAILED, sentence, {"backend": backend, "ranks": ranks})
    figures = json.loads(answer.out.splitlines()[-1])
    right = figures["sum"] == figures["expected"]
    words = f"{figures['version']} adds {ranks} ranks up" if right else f"{figures['version']} comes to a wrong sum"
    sentence = f"{words}, 64 MiB in {figures['seconds'] * 1e3:.1f} ms"
    return Verdict("machine", "collective", OK if right else FAILED, sentence, figures)


def main(backend: str, ranks: int) -> None:
    """Start the ranks and print what the first one found."""
    import torch.multiprocessing

    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (ranks, backend, folder), nprocs=ranks)
        sys.stdout.write((Path(folder) / "answer.json").read_text() + "\n")


def _rank(rank: int, ranks: int, backend: str, folder: str) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    on_gpu = backend == "nccl"
    if on_gpu:
        torch.cuda.set_device(rank)
    numbers = torch.ones(NUMBERS, device="cuda" if on_gpu else "cpu")
    dist.all_reduce(numbers)
    total = numbers[-1].item()
    start = time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(numbers)
    numbers[-1].item()  # waits for the device
    seconds = (time.perf_counter() - start) / REPEATS
    if rank == 0:
        version = (
            f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}" if on_gpu else f"gloo of torch {torch.__version__}"
        )
        answer = {
            "backend": backend,
            "version": version,
            "ranks": ranks,
            "sum": total,
            "expected": ranks,
            "seconds": seconds,
        }
        (Path(folder) / "answer.json").write_text(json.dumps(answer))
    dist.destroy_process_group()


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main(sys.argv[1], int(sys.argv[2]))
