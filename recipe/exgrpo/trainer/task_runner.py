"""A run on Ray: verl's task runner with our trainer, started so that signals reach it and its failures have a name."""

import contextlib
import logging
from collections.abc import Callable

import ray
from omegaconf import DictConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo

from recipe.exgrpo.runs.stopping import Stopped
from verl_ext.lost_nodes import LostNodes
from verl_ext.quiet import silence
from verl_ext.watchdog import Watchdog

logger = logging.getLogger(__name__)


class EngineDiedError(RuntimeError):
    """A vLLM engine died, and the run with it."""


# The class behind verl's actor: a class decorated with ray.remote cannot be inherited from.
class ExGRPOTaskRunner(TaskRunnerV1.__ray_actor_class__):
    """verl's task runner, after registering our trainer and advantage estimator in its process."""

    def run(self, config: DictConfig) -> None:
        """Train. Returns also when the run was asked to stop. Raises EngineDiedError for whatever a dead engine led to."""
        import recipe.exgrpo.trainer.trainer  # noqa: F401  (registers)

        with contextlib.ExitStack() as self._silence:
            self._silence.enter_context(silence())  # verl prints the whole configuration, which is in the record
            try:
                super().run(config)
            except Stopped as reason:
                logger.warning("%s", reason)
            except Exception as error:
                dead = self.trainer.dead_engine() if self.trainer is not None else None
                if dead is None:
                    raise
                raise EngineDiedError(dead) from error

    def init_agent_loop_manager(self) -> None:
        """The last thing before training: from here on what is printed is about steps."""
        self._silence.close()
        super().init_agent_loop_manager()


class _Runner:
    """What verl makes its task runner with, once Ray runs: Ray takes SIGTERM for itself while it starts."""

    def __init__(self, on_start: Callable[[], None]) -> None:
        self._class, self._on_start = ray.remote(ExGRPOTaskRunner), on_start

    def options(self, **options) -> "_Runner":
        self._class = self._class.options(**options)
        return self

    def remote(self):
        self._on_start()
        # On this machine of several: it holds the experience.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return self._class.options(scheduling_strategy=here).remote()


def train(config: DictConfig, on_start: Callable[[], None]) -> None:
    """Train to the end, or until the run is asked to stop; `on_start` is called once Ray runs.

    Raises StalledError when a machine of several is lost.
    """
    several = config.trainer.nnodes > 1
    with Watchdog(None).guard("training", LostNodes() if several else None):
        run_ppo(config, task_runner_class=_Runner(on_start))
