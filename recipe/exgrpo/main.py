"""Entry point: `python -m recipe.exgrpo.main [key=value ...]`, configuration in `recipe/exgrpo/config`.

Exit codes: 0 done; 2 refused, with one sentence, before anything was started or touched; 75 stopped in order by SIGTERM, SIGINT
or SIGUSR1, the same command resumes; 128 and the signal ended at once by a second one; 1 any other error.
"""

import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from recipe.exgrpo.checks.cores import fit_cpus, leave_to_cluster, require_cpus
from recipe.exgrpo.checks.findings import ERROR, PreflightError
from recipe.exgrpo.checks.preflight import check
from recipe.exgrpo.checks.resume import resume_findings
from recipe.exgrpo.checks.run import Run, settings_of
from recipe.exgrpo.presets.compose import CompositionError, compose
from recipe.exgrpo.runs import lock, stopping, summary
from recipe.exgrpo.runs.record import record_start
from verl_ext.platform import fork_server, handed_on, prepare_environment, shared_memory
from verl_ext.quiet import quiet

logger = logging.getLogger(__name__)

REFUSED = 2
CLUSTER = "RAY_ADDRESS"  # set: a Ray that is there already
RUNTIME = "ray_kwargs.ray_init.runtime_env"
FORMAT = "%(levelname)s:%(asctime)s:%(message)s"


def main(arguments: Sequence[str]) -> int:
    """Check, lock, train. Returns the exit code."""
    try:
        config = compose(arguments)
    except CompositionError as problem:
        return _refuse(str(problem))
    # Before verl is imported: verl picks its platform while it is being imported, in this process and in every worker. Before
    # Ray is: the fork server of its workers must not have it, and it imports for them what takes long while we check.
    on_cpu = prepare_environment()
    runtime = _runtime_env(on_cpu, quiet())
    logging.basicConfig(level=logging.INFO, format=FORMAT, datefmt="%H:%M:%S")
    try:
        folder = Path(config.trainer.default_local_dir)
        check(config)
        _require_device(config.trainer.device, on_cpu)
        with lock.hold(folder):
            return _run(config, folder, runtime)
    except (PreflightError, lock.LockedError) as problem:
        return _refuse(str(problem))
    except OSError as problem:
        if problem.filename is None or not Path(problem.filename).is_relative_to(config.trainer.default_local_dir):
            raise
        return _refuse(
            f"trainer.default_local_dir: {problem.filename} cannot be written ({problem.strerror}); set RUN to another."
        )


def _runtime_env(on_cpu: bool, levels: dict[str, str]) -> dict:
    """How Ray starts our workers: in our environment, and on CPU by a fork; those of a cluster have the environment it has."""
    if not on_cpu:
        return {"env_vars": levels}
    if CLUSTER in os.environ:
        return {"env_vars": levels | handed_on()}
    return {"env_vars": levels, "py_executable": fork_server.start()}


def _require_device(device: str, on_cpu: bool) -> None:
    """Raise PreflightError where `trainer.device` is not what this process will run on: verl would say so in another way, after
    minutes. A cluster's GPUs are elsewhere, and then `on_cpu` is false."""
    if device == "cuda" and on_cpu:
        raise PreflightError(
            f"trainer.device is cuda and {sys.executable} sees no GPU (a driver, a torch built for it, CUDA_VISIBLE_DEVICES): "
            "train in the GPU environment (make setup-gpu, PYTHON=.venv-gpu/bin/python), or TINY=1 on CPU."
        )
    if device == "cpu" and not on_cpu:
        raise PreflightError(
            "trainer.device is cpu and verl would take this machine's GPU: use the CPU environment (make setup, "
            "PYTHON=.venv/bin/python), or set VERL_PLATFORM=cpu."
        )


def _refuse(sentence: str) -> int:
    sys.stderr.write(f"{sentence}\n")
    return REFUSED


def _run(config: DictConfig, folder: Path, runtime: dict) -> int:
    """A run whose folder is locked. Between check and lock another run may have been there."""
    for finding in resume_findings(Run.of(config)):
        if finding.severity == ERROR:
            raise PreflightError(finding.text)
    signals = stopping.Signals(folder, settings_of(config).runtime.stop_grace_s)
    signals.close()  # what a run that died was asked is over
    signals.install()
    try:
        return _train(config, folder, runtime, signals)
    finally:
        signals.close()


def _train(config: DictConfig, folder: Path, runtime: dict, signals: stopping.Signals) -> int:
    from recipe.exgrpo.checks.verl import validate
    from recipe.exgrpo.trainer.task_runner import train

    validate(config)
    logger.info("record of this start: %s", record_start(config))
    if CLUSTER in os.environ:
        leave_to_cluster(config)
    fit_cpus(config)
    OmegaConf.update(config, RUNTIME, OmegaConf.merge(runtime, _set(config, RUNTIME)), force_add=True)
    with shared_memory.tidied():
        try:
            train(config, on_start=partial(_started, config, signals))
            words = summary.done(folder, config.trainer.total_training_steps, asked=signals.first is not None)
            code = stopping.STOPPED if words.startswith(summary.EARLY) else 0
        except PreflightError:
            _end_ray()
            raise
        except KeyboardInterrupt:
            words, code = summary.failed(folder, "a second signal, or the end of the grace"), signals.code
        except Exception as error:
            logger.exception("the run failed")
            words, code = summary.failed(folder, summary.cause_of(error)), 1
        _end_ray()
    sys.stderr.write(f"{words}\n")  # last: Ray's processes, whose words we print, are gone
    return code


def _started(config: DictConfig, signals: stopping.Signals) -> None:
    """Ray runs, and has taken SIGTERM for itself."""
    signals.install()
    require_cpus(config, _nodes())


def _nodes() -> list[dict]:
    import ray

    return ray.nodes()


def _set(config: DictConfig, key: str) -> dict:
    """What somebody has set there, and is not to be replaced."""
    node = OmegaConf.to_container(OmegaConf.select(config, key), resolve=True)
    return {name: value for name, value in node.items() if value is not None}


def _end_ray() -> None:
    import ray

    ray.shutdown()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
