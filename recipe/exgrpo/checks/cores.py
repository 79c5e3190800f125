"""CPU reservations: what Ray is asked to set aside, and whether it can. What it cannot, it waits for without a word.

verl 0.9.1 and TransferQueue 0.1.11 reserve on each node
  1 for each storage unit (`@ray.remote(num_cpus=1)` in simple_storage.py), dealt out over the nodes, 1 for the controller
    (controller.py) on one of them,
  3 for each GPU (`ResourcePoolManager.max_colocate_count` in single_controller/ray/base.py),
  and every other actor needs 1 that is free to be placed, though it then holds none.
Reservations are counts in Ray's books, no cores are taken from anybody: on a machine of our own Ray is told that it has them.
"""

import os
from collections.abc import Iterator, Mapping

from omegaconf import DictConfig, OmegaConf

from recipe.exgrpo.checks.findings import Finding, PreflightError, error, note, warning
from recipe.exgrpo.checks.machine import Machine, usable_cores
from recipe.exgrpo.checks.run import Run

PER_GPU, CONTROLLER, PLACEMENT = 3, 1, 1
FEW = 4  # cores for each GPU: trainer, engine, its server and the agent loop each keep one busy
NUM_CPUS = "ray_kwargs.ray_init.num_cpus"
OF_OWN_RAY = (NUM_CPUS, "ray_kwargs.ray_init.num_gpus", "ray_kwargs.ray_init.object_store_memory")


def reserved_cpus(config: DictConfig) -> int:
    """CPUs that the node with most reservations must offer Ray."""
    queue, reward = config.transfer_queue.backend, config.reward.reward_model
    units = queue.SimpleStorage.num_data_storage_units if queue.storage_backend == "SimpleStorage" else 0
    gpus = config.trainer.n_gpus_per_node + (reward.n_gpus_per_node if reward.enable_resource_pool else 0)
    return -(-units // config.trainer.nnodes) + CONTROLLER + PER_GPU * gpus + PLACEMENT


def fitted_cpus(config: DictConfig, cores: int, env: Mapping[str, str] = os.environ) -> int | None:
    """What to tell a Ray of our own so that the run starts on `cores` cores; None where nothing needs to be told."""
    own = "RAY_ADDRESS" not in env and OmegaConf.select(config, NUM_CPUS) is None
    return reserved_cpus(config) if own and cores < reserved_cpus(config) else None


def fit_cpus(config: DictConfig) -> None:
    """Have a Ray of our own believe in as many CPUs as the run reserves, where this machine has fewer cores."""
    fitted = fitted_cpus(config, usable_cores())
    if fitted:
        OmegaConf.update(config, NUM_CPUS, fitted, force_add=True)


def leave_to_cluster(config: DictConfig) -> None:
    """Unset what a Ray of our own is told: the nodes of a cluster have said what they have, and Ray refuses the keys there."""
    for key in OF_OWN_RAY:
        OmegaConf.update(config, key, None, force_add=True)


def core_findings(run: Run, machine: Machine, env: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Reservations that Ray would wait for; and how few cores the processes really share."""
    needed, given = reserved_cpus(run.config), OmegaConf.select(run.config, NUM_CPUS)
    if "RAY_ADDRESS" in env:
        yield note(f"cores: each node must offer Ray {needed} CPUs; the run looks at them before it starts.")
        return
    if given is not None and given < needed:
        yield error(
            f"{NUM_CPUS} is {given} and verl and TransferQueue reserve {needed}: the run would wait for ever; leave it null, "
            "or lower transfer_queue.backend.SimpleStorage.num_data_storage_units."
        )
    if run.config.trainer.device != "cpu" and machine.accelerator and machine.cores < FEW * run.gpus_per_node:
        yield warning(
            f"cores: {machine.cores} for {run.gpus_per_node} GPUs (trainer.n_gpus_per_node); with fewer than {FEW} for each, "
            "processes wait for each other."
        )
    fitted = fitted_cpus(run.config, machine.cores, env)
    if fitted:
        yield note(f"cores: {needed} are reserved; Ray is told so on this machine of {machine.cores} ({NUM_CPUS}).")


def require_cpus(config: DictConfig, nodes: list[Mapping]) -> None:
    """Raise PreflightError unless enough of `nodes` (`ray.nodes()` of the cluster that was joined) hold the reservations."""
    needed, gpus, wanted = reserved_cpus(config), config.trainer.n_gpus_per_node, config.trainer.nnodes
    alive = [node["Resources"] for node in nodes if node.get("Alive")]
    able = [have for have in alive if have.get("CPU", 0) >= needed and have.get("GPU", 0) >= gpus]
    if len(able) < wanted:
        seen = "; ".join(f"{have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs" for have in alive) or "none"
        raise PreflightError(
            f"trainer.nnodes is {wanted} and {len(able)} of Ray's nodes offer {needed} CPUs and {gpus} GPUs "
            f"(trainer.n_gpus_per_node): {seen}. Ray would wait for ever: start the nodes with --num-cpus={needed} or more, "
            "or lower transfer_queue.backend.SimpleStorage.num_data_storage_units."
        )
