"""Skip updates whose gradient norm is not finite or above a bound, and count them.

verl's `FSDPEngine.optimizer_step` clips, steps unless the norm is not finite, and returns the norm. The guard lets it run
as it is with the optimizer's step held back, looks at the returned norm, and then steps or drops the gradients: the norm
is computed once, by verl.
"""

import logging
import math
from typing import Any

from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

logger = logging.getLogger(__name__)

METRIC = "skipped_updates"


class _HeldOptimizer:
    """An optimizer whose `step` waits for `release`; everything else reaches the real one."""

    # A gradient scaler would otherwise leave the unscaling to a fused `step`, through attributes set just around it.
    _step_supports_amp_scaling = False

    def __init__(self, optimizer: Any):
        self._optimizer = optimizer
        self._stepped = False

    def step(self) -> None:
        self._stepped = True

    def release(self) -> None:
        if self._stepped:
            self._optimizer.step()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


class GradGuard:
    """Guards the updates of one FSDP or FSDP2 engine, by standing in for its `optimizer_step`.

    Args:
        engine: verl's `FSDPEngine`; its other methods are untouched.
        max_norm: updates with a larger gradient norm, before clipping, are skipped; None skips only non-finite ones.

    The norm is that of the whole model on every rank, so all ranks decide alike.

    Raises:
        TypeError: another kind of engine.
    """

    def __init__(self, engine: FSDPEngine, max_norm: float | None = None):
        if not isinstance(engine, FSDPEngine):
            raise TypeError(f"the gradient guard works with FSDP engines, not with {type(engine).__name__}.")
        self.max_norm = max_norm
        self.skipped = False  # whether the last update was
        self._engine = engine
        self._optimizer_step = engine.optimizer_step
        engine.optimizer_step = self.optimizer_step

    def optimizer_step(self) -> float:
        """verl's `optimizer_step`, guarded. Returns the gradient norm before clipping, as verl does."""
        optimizer = self._engine.optimizer
        held = _HeldOptimizer(optimizer)
        self._engine.optimizer = held
        try:
            norm = self._optimizer_step()
        finally:
            self._engine.optimizer = optimizer
        self.skipped = not self._accepts(float(norm))
        if self.skipped:
            logger.warning("update skipped: gradient norm %s (bound: %s)", norm, self.max_norm)
            optimizer.zero_grad()
        else:
            held.release()
        return norm

    def _accepts(self, norm: float) -> bool:
        return math.isfinite(norm) and (self.max_norm is None or norm <= self.max_norm)


class GuardedTrainingWorker(TrainingWorker):
    """verl's training worker with a guarded optimizer.

    Each update adds the metric `skipped_updates`, 0.0 or 1.0; verl's mean over a step's updates is their skipped share.
    """

    def __init__(self, config):
        super().__init__(config)
        self.guard = GradGuard(self.engine)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False)
    def train_batch(self, data: TensorDict) -> TensorDict:
        """One update, as verl's."""
        output = super().train_batch(data)
        if output is not None:  # None on ranks that hold no outputs
            tu.assign_non_tensor_data(
                output, "metrics", {**tu.get(output, "metrics"), METRIC: float(self.guard.skipped)}
            )
        return output


class GuardedWorker(ActorRolloutRefWorker):
    """verl's hybrid worker with a guarded actor."""

    actor_worker_cls = GuardedTrainingWorker

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def set_grad_guard(self, max_norm: float | None) -> None:
        """Bound the actor's gradient norm from the next update on; None skips only non-finite ones.

        Raises:
            ValueError: the bound is not positive.
        """
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"the bound of the gradient norm must be above 0 or null, not {max_norm}.")
        self.actor.guard.max_norm = max_norm
