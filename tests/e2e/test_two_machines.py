"""Two machines (tests/helpers/machines.py) in a cluster by scripts/ray_cluster.sh: a run over both, and one of them crashes."""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from machines import Machine, Network, network, why_not

from recipe.exgrpo.runs.folder import Checkpoint, tracked_step
from recipe.exgrpo.runs.summary import last_step

pytestmark = [pytest.mark.stack, pytest.mark.scripts]  # eight minutes, as root

NODE = {"HARDWARE": "cpu", "GPUS": "1", "CPUS": "16"}
BASE = (
    *("data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=4", "exgrpo.start_threshold=null"),
    *(
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
        "trainer.save_freq=1",
        "trainer.max_actor_ckpt_to_keep=2",
    ),
)
LIMIT_S = 900  # of a start on a busy machine


@dataclass
class Cluster:
    """The machines, the run's folder, and what its first start said until a machine crashed under it."""

    network: Network
    head: Machine
    folder: Path
    crash_to_end_s: float
    code: int
    said: list[str]

    def start(self, **given: str) -> subprocess.CompletedProcess:
        return self.head.run(*RUN, timeout_s=LIMIT_S, **environment(self.folder, self.head) | given)


RUN = ("bash", "scripts/run_exgrpo_toy_cpu.sh", *BASE)


def environment(folder: Path, head: Machine) -> dict[str, str]:
    address = {"RAY_ADDRESS": f"{head.address}:6379", "VERL_PLATFORM": "cpu", "NNODES": "2"}
    return address | {"RUN": str(folder / "run"), "DATA": str(folder / "data"), "STEPS": "1000"}


def cluster_script(machine: Machine, *words: str, **given: str) -> str:
    done = machine.run("bash", "scripts/ray_cluster.sh", *words, timeout_s=300, **NODE | given)
    assert done.returncode == 0, done.stdout
    return done.stdout


def join(found: Network, head: Machine) -> Machine:
    worker = found.boot("node2")
    found.connect(head, worker)
    token = cluster_script(head, "token").split()[-1]
    cluster_script(worker, "worker", head.address, RAY_AUTH_TOKEN=token)
    cluster_script(head, "wait", "2")
    return worker


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    reason = why_not()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("machines")
    with network(folder) as found:
        head = found.boot("node1")
        cluster_script(head, "head")
        worker = join(found, head)
        log = folder / "log"
        with log.open("w") as output:
            run = subprocess.Popen(
                head.command(*RUN),
                env=head.environment(**environment(folder, head)),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + LIMIT_S
            while not (folder / "run").exists() or last_step(folder / "run") < 2:
                assert run.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(0.02)
            time.sleep(0.5)  # the next rollout has begun
            worker.crash()
            crashed = time.monotonic()
            code = run.wait(timeout=LIMIT_S)
        finally:
            run.kill()
        yield Cluster(found, head, folder, time.monotonic() - crashed, code, log.read_text().splitlines())


def test_both_machines_train_and_save(cluster):
    step = tracked_step(cluster.folder / "run")
    assert step >= 2
    saved = Checkpoint(cluster.folder / "run" / f"global_step_{step}")
    assert (saved.problems, saved.ranks) == ((), 2)
    workers = [line for line in cluster.said if "(WorkerDict" in line]
    assert any("ip=10.77.0.2" in line for line in workers)
    assert any("ip=" not in line for line in workers)
    assert not any("ip=10.77.0.2" in line for line in cluster.said if "(ExGRPOTaskRunner" in line), (
        "with the experience"
    )


def test_a_machine_that_crashes_in_a_rollout_ends_the_run_with_its_name_last(cluster):
    """Ray misses a machine that has fallen off the net after a minute; the rest is ours."""
    assert cluster.code == 1
    assert "Cause: StalledError: training: node2 (10.77.0.2) left Ray's cluster" in cluster.said[-1]
    assert f"global_step_{tracked_step(cluster.folder / 'run')}; the same command resumes from it" in cluster.said[-1]
    assert cluster.crash_to_end_s < 180


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ("2", "trainer.nnodes is 2 and 1 of Ray's nodes offer"),
        ("1", "was saved by 2; verl does not reshard: run on 2"),
    ],
)
def test_the_survivor_is_told_what_a_resume_needs(cluster, nodes, said):
    done = cluster.start(NNODES=nodes)
    assert done.returncode == 2, done.stdout[-4000:]
    assert said in done.stdout.splitlines()[-1]


def test_with_the_machine_back_the_same_command_resumes(cluster):
    join(cluster.network, cluster.head)
    before = tracked_step(cluster.folder / "run")
    done = cluster.start(STEPS=str(before + 1))
    assert done.returncode == 0, done.stdout[-4000:]
    assert tracked_step(cluster.folder / "run") == last_step(cluster.folder / "run") == before + 1
