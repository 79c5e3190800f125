"""Which machines a run has lost; tests/e2e/test_two_machines.py loses one for real."""

from types import SimpleNamespace

import pytest

from verl_ext import lost_nodes

pytestmark = pytest.mark.verl


@pytest.fixture
def cluster(monkeypatch):
    """Nodes a, b and c; this job's actors on a and b, another's on c."""
    there = SimpleNamespace(alive={"a", "b", "c"}, running={"a": "01", "b": "01", "c": "02"}, initialized=True)

    def nodes():
        return [
            {
                "NodeID": name,
                "Alive": name in there.alive,
                "NodeManagerHostname": f"host-{name}",
                "NodeManagerAddress": name,
            }
            for name in "abc"
        ]

    def actors():
        return {
            name: {"JobID": job, "State": "ALIVE" if name in there.alive else "DEAD", "Address": {"NodeID": name}}
            for name, job in there.running.items()
        }

    monkeypatch.setattr(lost_nodes.ray, "is_initialized", lambda: there.initialized)
    monkeypatch.setattr(lost_nodes.ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01"))
    monkeypatch.setattr(lost_nodes.ray, "nodes", nodes)
    monkeypatch.setattr(lost_nodes.state, "actors", actors)
    return there


def test_a_machine_of_the_job_is_missed(cluster):
    look = lost_nodes.LostNodes()
    assert look() is None
    cluster.alive -= {"b"}
    assert look() == "host-b (b) left Ray's cluster"


def test_machines_of_others_may_go(cluster):
    look = lost_nodes.LostNodes()
    assert look() is None
    cluster.alive -= {"c"}
    assert look() is None


def test_a_machine_that_was_gone_before_the_job_came_is_not_its_own(cluster):
    cluster.alive -= {"b"}
    assert lost_nodes.LostNodes()() is None


def test_before_ray_runs_there_is_nothing_to_lose(cluster):
    cluster.initialized = False
    assert lost_nodes.LostNodes()() is None
