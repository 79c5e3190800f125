"""What the doctor starts: the toy task and a model with random weights, each by the baseline and by ExGRPO, resumed, by LoRA.

All of them are `scripts/run_exgrpo_toy_cpu.sh` with other switches, whatever the device: what a user types to see it again.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from recipe.exgrpo.presets.compose import ROOT, compose, script_overrides

SCRIPT = ROOT / "scripts/run_exgrpo_toy_cpu.sh"
SECTIONS = ("machine", "toy", "model", "speed")
MODEL = "random-model"  # folder of the model with random weights
BASELINE, EXGRPO, RESUME, LORA = "baseline", "exgrpo", "resume", "lora"
SHORT = ("exgrpo.start_threshold=null", "trainer.test_freq=-1", "trainer.val_before_train=false")
COIN = "reward.custom_reward_function.path=pkg://recipe.exgrpo.doctor.coin"
# Switches of the script that somebody's shell may have set, and that here are none.
UNSET = ("MODEL", "TOKENIZER", "TRAIN", "VAL", "REWARD_MODEL", "NNODES", "GPUS", "LOGGER", "TINY", "VARIANT")
# A learning rate at which an adapter that did not reach vLLM shows in the log-probs after one step (tests/e2e/test_lora.py).
ADAPTERS = ("lora_rank=16", "lora_alpha=16")
ADAPTER_RATE = "actor_rollout_ref.actor.optim.lr=1e-2"


@dataclass(frozen=True)
class Device:
    """What is trained on. `kind`: cpu or cuda; `gigabytes`: those of one card as it is sold, None on CPU; `flash_attention`:
    whether it is installed."""

    kind: str
    gigabytes: float | None = None
    flash_attention: bool = False

    @property
    def hardware(self) -> str:
        """The preset for one card of this size."""
        if self.gigabytes is None:
            return "cpu"
        return f"gpu_1x{80 if self.gigabytes >= 70 else 48 if self.gigabytes >= 44 else 24}"

    @property
    def overrides(self) -> list[str]:
        """What the preset does not know of this machine."""
        if self.gigabytes is None:
            return []
        sdpa = "+actor_rollout_ref.model.override_config.attn_implementation=sdpa"
        return [f"preset.gpu_memory_gib={self.gigabytes:g}", *([] if self.flash_attention else [sdpa])]


@dataclass(frozen=True)
class Start:
    """One start of the stack. `kind`: BASELINE, EXGRPO, RESUME or LORA; `steps`: the step it ends at; `model`: a folder, None
    for the toy model; `run`: its run folder, which RESUME shares with EXGRPO."""

    section: str
    kind: str
    steps: int
    run: Path
    data: Path
    device: Device
    model: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.section} {self.kind}"

    @property
    def environment(self) -> dict[str, str]:
        """Switches of the script, those that are none set to nothing."""
        return dict.fromkeys(UNSET, "") | self.switches

    @property
    def switches(self) -> dict[str, str]:
        given = {"RUN": self.run, "STEPS": self.steps, "DATA": self.data, "HARDWARE": self.device.hardware}
        return {name: str(value) for name, value in (given | ({"MODEL": self.model} if self.model else {})).items()}

    @property
    def overrides(self) -> list[str]:
        model = [COIN, *model_sizes(self.device)] if self.model else []
        return [*SHORT, *self.device.overrides, *model, *_kind_overrides(self.kind)]

    @property
    def command(self) -> str:
        """The line to type in the root of the checkout."""
        switches = (f"{name}={shlex.quote(value)}" for name, value in self.switches.items())
        return " ".join([*switches, "bash", str(SCRIPT.relative_to(ROOT)), *map(shlex.quote, self.overrides)])

    def compose(self) -> DictConfig:
        """Its configuration, without starting it."""
        return compose(script_overrides(SCRIPT, self.overrides, self.environment))


def model_sizes(device: Device) -> list[str]:
    """Lengths and budgets of the model with random weights, whose responses all have the full length; none on CPU, where those
    of the toy task do. Below 20 GB the optimizer stays on the host, and the logits of a 152k vocabulary get a quarter."""
    if device.gigabytes is None:
        return []
    small = device.gigabytes < 20
    budget = 1024 if small else 4096
    return [
        *(["actor_rollout_ref.actor.fsdp_config.offload_policy=true"] if small else []),
        "data.train_batch_size=16",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "data.max_response_length=464",
        "actor_rollout_ref.rollout.max_model_len=512",
        f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={budget}",
        f"actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu={2 * budget}",
        "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes=2560",
    ]


def _kind_overrides(kind: str) -> Sequence[str]:
    if kind == BASELINE:
        return "exgrpo.policy=on_policy", "trainer.save_freq=-1"
    if kind == EXGRPO:
        return ("trainer.save_freq=2",)
    if kind == LORA:
        return (*(f"actor_rollout_ref.model.{one}" for one in ADAPTERS), ADAPTER_RATE, "trainer.save_freq=-1")
    return ("trainer.save_freq=-1",)


def starts(section: str, out: Path, device: Device, quick: bool = False) -> list[Start]:
    """The starts of a section in their order; `quick`: of the toy task ExGRPO and its resume alone."""
    if section not in ("toy", "model"):
        return []
    model = out / MODEL if section == "model" else None

    def start(kind: str, steps: int) -> Start:
        folder = out / f"{section}-{EXGRPO if kind == RESUME else kind}"
        return Start(section, kind, steps, folder, out / "data", device, model)

    found = [start(BASELINE, 2), start(EXGRPO, 2), start(RESUME, 3), start(LORA, 2)]
    if quick:
        return found[1:3] if section == "toy" else []
    return found if section == "model" else found[:3]
