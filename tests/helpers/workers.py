"""A training worker in this process: verl's engine, FSDP2 over gloo, the only rank of its process group."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch

from recipe.exgrpo.trainer.worker import ExGRPOWorker


@contextmanager
def local_worker(config) -> Iterator[ExGRPOWorker]:
    """A worker with the model of `config` (a whole run's); its process group ends with the block."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    worker = ExGRPOWorker(config.actor_rollout_ref, role="actor")
    worker.init_model()
    try:
        yield worker
    finally:
        torch.distributed.destroy_process_group()


def group_of(worker: ExGRPOWorker) -> SimpleNamespace:
    """The worker as a group of one, for `score_candidates`."""
    return SimpleNamespace(score_candidates=worker.score_candidates)
