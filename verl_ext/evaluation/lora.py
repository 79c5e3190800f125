"""LoRA checkpoints: verl's merger leaves the base model's weights and, beside them, the adapter; here the two become one.

`python -m verl_ext.evaluation.lora FOLDER` does it in a process of its own, whose memory is free again before vLLM starts.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from verl_ext.evaluation import EvaluationError

ADAPTER = "lora_adapter"  # of verl's merger, in the merged folder
TRAINED_WITH = "lora_train_meta.json"  # of verl's checkpoints: rank and alpha


def fold_in(folder: Path) -> None:
    """Add the adapter in `folder/lora_adapter` to the weights of `folder`, in place, and remove it.

    Weights keep their dtype: W + (alpha / rank) B A, rounded as they are on disk.

    Raises:
        EvaluationError: alpha is not known, or the base model's weights are not all there. Either would give the base model,
            or random weights, without a word.
    """
    _check_scale(folder / ADAPTER / "adapter_config.json")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, loading = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    if loading["missing_keys"]:
        raise EvaluationError(
            f"{folder}: the checkpoint has no weights of its base model ({len(loading['missing_keys'])} are missing); "
            "train with actor_rollout_ref.actor.checkpoint.save_lora_only=false"
        )
    whole = PeftModel.from_pretrained(base, folder / ADAPTER).merge_and_unload(safe_merge=True)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    whole.save_pretrained(folder)
    shutil.rmtree(folder / ADAPTER)


def _check_scale(config: Path) -> None:
    alpha = json.loads(config.read_text(encoding="utf-8"))["lora_alpha"]
    if not alpha > 0:
        raise EvaluationError(
            f"{config}: lora_alpha is {alpha}: the checkpoint has no {TRAINED_WITH}, or one without it, and the adapter's "
            "scale cannot be told"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m verl_ext.evaluation.lora", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder that `verl.model_merger merge` wrote")
    try:
        fold_in(parser.parse_args().folder)
    except (EvaluationError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
