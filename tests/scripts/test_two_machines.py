"""scripts/ray_cluster.sh on two machines (tests/helpers/machines.py): who may join, and a job that notices that one is gone."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from machines import Machine, network, why_not

pytestmark = [pytest.mark.verl, pytest.mark.long]

NODE = {"HARDWARE": "cpu", "GPUS": "1", "CPUS": "4"}
# A rank on each machine; the driver waits for the one beside it, as for whoever waits for the other in turn.
JOB = """
import time
import ray
from verl_ext.lost_nodes import LostNodes
from verl_ext.watchdog import StalledError, Watchdog

@ray.remote(num_gpus=1)
class Rank:
    def address(self):
        return ray.util.get_node_ip_address()

    def wait(self):
        time.sleep(3600)

ray.init(log_to_driver=False)
ranks = {ray.get(rank.address.remote()): rank for rank in (Rank.remote(), Rank.remote())}
print("ranks", *sorted(ranks), flush=True)
try:
    with Watchdog(None).guard("training", LostNodes()):
        ray.get(ranks["10.77.0.1"].wait.remote())
except StalledError as problem:
    print(problem, flush=True)
"""


@dataclass
class Cluster:
    """What `head`, `worker` without and with the token, and `wait` said."""

    head: Machine
    worker: Machine
    said: dict[str, subprocess.CompletedProcess]


def script(machine: Machine, *words: str, **given: str) -> subprocess.CompletedProcess:
    return machine.run("bash", "scripts/ray_cluster.sh", *words, timeout_s=300, **NODE | given)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with network(tmp_path_factory.mktemp("machines")) as found:
        head, worker = found.boot("node1"), found.boot("node2")
        found.connect(head, worker)
        said = {"head": script(head, "head")}
        token = script(head, "token").stdout.split()[-1]
        said["without"] = script(worker, "worker", head.address)
        said["with"] = script(worker, "worker", head.address, RAY_AUTH_TOKEN=token)
        said["wait"] = script(head, "wait", "2", WAIT_S="120")
        yield Cluster(head, worker, said)


def test_who_has_the_token_joins(cluster):
    codes = {name: done.returncode for name, done in cluster.said.items()}
    assert codes == {"head": 0, "without": 2, "with": 0, "wait": 0}, cluster.said
    assert "no token on this machine" in cluster.said["without"].stdout


def test_a_job_notices_a_machine_that_has_fallen_off_the_net(cluster, tmp_path):
    """Ray misses it after a minute; without a look at that, the job would wait for ever."""
    log: Path = tmp_path / "log"
    command = 'source scripts/environment.sh; use_ray_token; exec "$PYTHON" -c "$JOB"'
    given = {"PYTHON": sys.executable, "RAY_ADDRESS": f"{cluster.head.address}:6379", "JOB": JOB}
    with log.open("w") as output:
        job = subprocess.Popen(
            cluster.head.command("bash", "-c", command),
            env=cluster.head.environment(**given),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 300
        while "ranks 10.77.0.1 10.77.0.2" not in log.read_text():
            assert job.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        time.sleep(5)  # a look, which sees where the ranks are
        cluster.worker.crash()
        crashed = time.monotonic()
        assert job.wait(timeout=300) == 0, log.read_text()
    finally:
        job.kill()
    assert "training: node2 (10.77.0.2) left Ray's cluster" in log.read_text().splitlines()
    assert time.monotonic() - crashed < 180
