"""Notice that a machine of a Ray cluster is gone, and the run with it.

Whoever waits for a dead machine's rank, engine or TransferQueue does so until a time limit of its own, if it has one. Ray
knows: at once where the machine's processes end, after about a minute (`RAY_health_check_*`) where it falls off the net.
"""

from __future__ import annotations

import ray
from ray._private import state


class LostNodes:
    """Asked now and then, as a watchdog's `problem`: a sentence about lost machines of this job; None while all are there.

    Those of other jobs may come and go: a job's machines are those on which an actor of it was seen alive.
    """

    def __init__(self) -> None:
        self._ours: set[str] = set()

    def __call__(self) -> str | None:
        if not ray.is_initialized():
            return None
        job = ray.get_runtime_context().get_job_id()
        actors = (actor for actor in state.actors().values() if (actor["JobID"], actor["State"]) == (job, "ALIVE"))
        self._ours |= {actor["Address"]["NodeID"] for actor in actors}
        lost = [node for node in ray.nodes() if node["NodeID"] in self._ours and not node["Alive"]]
        if not lost:
            return None
        names = ", ".join(f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in lost)
        return f"{names} left Ray's cluster"
