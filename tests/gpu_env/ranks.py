"""verl's FSDP2 engine on several ranks over gloo: `torchrun ranks.py OUT OVERRIDE...`, each rank a process.

Adapters (LoRA) are moved off zero; then `OUT/global_step_1` is saved, and what the
first rank scored goes to `OUT/scores.json`.
"""

import json
import sys
from pathlib import Path

import torch
from likelihoods import make_candidates

from recipe.exgrpo.presets.compose import compose
from verl_ext.platform import prepare_environment

prepare_environment()  # before verl is imported


def main(out: Path, overrides: list[str]) -> None:
    from workers import group_of

    from recipe.exgrpo.trainer.scoring import ForwardBudget, score_candidates
    from recipe.exgrpo.trainer.worker import ExGRPOWorker

    worker = ExGRPOWorker(compose(overrides).actor_rollout_ref, role="actor")
    worker.init_model()
    rank = torch.distributed.get_rank()
    torch.manual_seed(rank)
    with torch.no_grad():
        for name, weight in worker.actor.engine.module.named_parameters():
            if "lora_B" in name:
                local = weight.to_local()
                local.copy_(torch.randn(local.shape) * 0.05)
    scores, _ = score_candidates(group_of(worker), make_candidates(), 1, ForwardBudget(1.0, 64, True))
    worker.save_checkpoint(str(out / "global_step_1" / "actor"), global_step=1)
    if rank == 0:
        (out / "scores.json").write_text(json.dumps({"nll": list(scores.nll), "entropy": list(scores.entropy)}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
