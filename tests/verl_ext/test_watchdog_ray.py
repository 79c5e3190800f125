"""The watchdog reaches the main thread of a Ray actor that waits in `ray.get` for a worker that never answers."""

import time

import pytest
import ray

pytestmark = pytest.mark.verl


@ray.remote(num_cpus=0)
class Stuck:
    def never(self):
        time.sleep(600)


@ray.remote(num_cpus=0)
class Runner:
    """Where verl's trainer lives: an actor without async methods, whose methods run in the main thread."""

    def wait(self, stuck) -> str:
        from verl_ext.watchdog import StalledError, Watchdog

        try:
            with Watchdog(1.0, grace_s=20.0).guard("weight sync"):
                ray.get(stuck.never.remote())
        except StalledError as error:
            return str(error)
        return "came back"

    def wait_in_event_loop(self, stuck) -> None:
        import asyncio

        from verl_ext.watchdog import Watchdog

        async def update():
            await stuck.never.remote()

        with Watchdog(1.0, grace_s=20.0).guard("weight sync"):
            asyncio.run(update())


@pytest.mark.timeout(120)
def test_a_stuck_ray_get_raises_in_the_actor(local_ray):
    start = time.monotonic()
    message = ray.get(Runner.remote().wait.remote(Stuck.remote()), timeout=90)
    assert message.startswith("weight sync made no progress for 1 s")
    assert time.monotonic() - start < 60


@pytest.mark.timeout(120)
def test_a_stuck_event_loop_ends_the_actors_method_with_the_error(local_ray):
    with pytest.raises(ray.exceptions.RayTaskError, match="weight sync made no progress for 1 s"):
        ray.get(Runner.remote().wait_in_event_loop.remote(Stuck.remote()), timeout=90)
