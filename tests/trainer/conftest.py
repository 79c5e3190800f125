"""What the tests of whole runs share: verl's worker on this machine, runs of it by script, and the same model in float64."""

import pytest
from oracle import Float64
from whole_runs import MODEL, SIZES, Runs
from workers import local_worker


@pytest.fixture(scope="module")
def worker(compose):
    with local_worker(compose(*SIZES)) as found:
        yield found


@pytest.fixture(scope="module")
def runs(worker, transfer_queue, agent_loop_worker, compose, tmp_path_factory):
    """runs(name, steps, *overrides, **script) -> Run."""
    return Runs(worker, agent_loop_worker, compose, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def model():
    return Float64(MODEL)
