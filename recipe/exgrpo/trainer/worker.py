"""The training worker's side of ExGRPO: one more RPC on verl's hybrid worker, scoring candidates by a forward pass."""

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import make_nd_compute_dataproto_dispatch_fn, register

from recipe.exgrpo.trainer.scoring import padded_log_probs, trajectory_means
from verl_ext.grad_guard import GuardedWorker


class ForwardTokens:
    """Counts the token positions that go through a model while active, padding included."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.tokens = 0

    def __enter__(self) -> "ForwardTokens":
        self._hook = self.module.register_forward_pre_hook(self._count, with_kwargs=True)
        return self

    def __exit__(self, *exc_info) -> None:
        self._hook.remove()

    def _count(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        self.tokens += kwargs["input_ids"].numel()


class ExGRPOWorker(GuardedWorker):
    """verl's actor/rollout worker with the gradient guard, candidate scoring, and log-probs of traces from elsewhere."""

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def score_candidates(self, data: TensorDict) -> TensorDict | None:
        """Means over each row's own tokens under the current weights.

        Returns those of `trajectory_means` (float64 [n]) and `tokens_forwarded` (int64 [n], summing to this rank's count);
        None on ranks without outputs.
        """
        with ForwardTokens(self.actor.engine.module) as counter:
            output = self.actor.infer_batch(data)
        if output is None:
            return None
        means = trajectory_means(output, data)
        means["tokens_forwarded"] = torch.zeros(len(data), dtype=torch.int64)
        means["tokens_forwarded"][0] = counter.tokens
        return means.cpu()

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def behaviour_log_probs(self, data: TensorDict) -> TensorDict | None:
        """Log-probs of each row's response under the current weights, float32 [n, width]; None on ranks without outputs."""
        output = self.actor.infer_batch(data)
        return None if output is None else padded_log_probs(output, data)
