"""Entry point: `python -m recipe.exgrpo.main [key=value ...]`, hydra configuration in `recipe/exgrpo/config`."""

import logging
import sys

from recipe.exgrpo.presets.compose import require_configuration
from verl_ext.platform import fork_server, prepare_environment

if __name__ == "__main__":
    # A typo is refused in a second, not after twenty of imports.
    require_configuration(sys.argv[1:])
# Before verl is imported: verl picks its platform while it is being imported, in this process and in every worker.
ON_CPU = prepare_environment()
# Before Ray is: the fork server of its workers must not have it.
WORKER_COMMAND = fork_server.start() if ON_CPU and __name__ == "__main__" else ""

import hydra  # noqa: E402
import ray  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo  # noqa: E402

from recipe.exgrpo.checks.preflight import PreflightError, check  # noqa: E402
from recipe.exgrpo.checks.verl import validate  # noqa: E402
from recipe.exgrpo.runs.record import record_start  # noqa: E402

logger = logging.getLogger(__name__)
WORKER_KEY = "ray_kwargs.ray_init.runtime_env.py_executable"


# The class behind verl's actor: a class decorated with ray.remote cannot be inherited from.
class ExGRPOTaskRunner(TaskRunnerV1.__ray_actor_class__):
    """verl's task runner, after registering our trainer and advantage estimator in its process."""

    def run(self, config: DictConfig) -> None:
        import recipe.exgrpo.trainer.trainer  # noqa: F401  (registers)

        super().run(config)


@hydra.main(config_path="config", config_name="exgrpo_trainer", version_base=None)
def main(config: DictConfig) -> None:
    """Check the configuration, then train. Exit code 2 and one sentence on a bad configuration."""
    try:
        check(config)
        validate(config)
    except PreflightError as error:
        logger.error("%s", error)
        sys.exit(2)
    logger.info("record of this start: %s", record_start(config))
    if WORKER_COMMAND and OmegaConf.select(config, WORKER_KEY) is None:
        OmegaConf.update(config, WORKER_KEY, WORKER_COMMAND, force_add=True)
    run_ppo(config, task_runner_class=ray.remote(ExGRPOTaskRunner))


if __name__ == "__main__":
    main()
