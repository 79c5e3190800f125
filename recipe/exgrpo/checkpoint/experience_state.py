"""Experience in verl's checkpoints: `global_step_N/experience/`, beside `actor/` and written before verl's tracker file."""

import logging
from collections.abc import Collection
from pathlib import Path

from omegaconf import DictConfig

from recipe.exgrpo.checkpoint.checkpointer import ExperienceCheckpointer, model_fingerprint, tokenizer_fingerprint
from recipe.exgrpo.checkpoint.fill_state import load_fill, save_fill
from recipe.exgrpo.checkpoint.format import folder_of, step_dirs
from recipe.exgrpo.checkpoint.tensors import MissingState
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies.fill import FillManager
from recipe.exgrpo.core.policies.replay import ReplayManager

logger = logging.getLogger(__name__)


class ExperienceState:
    """Saves, loads and prunes the replay manager's state in the step folders of a run."""

    def __init__(self, config: DictConfig, settings: ExGRPOConfig, tokenizer, model_config) -> None:
        self.config = config
        self.settings = settings
        self.root = Path(config.trainer.default_local_dir)
        fingerprint = {
            "model": model_fingerprint(model_config),
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "group_size": config.actor_rollout_ref.rollout.n,
        }
        self.checkpointer = ExperienceCheckpointer(fingerprint)

    def save(self, step: int, manager: ReplayManager | FillManager) -> None:
        """Write the state after `step`; returns once it is on disk."""
        folder = self.root / f"global_step_{step}"
        if isinstance(manager, FillManager):
            save_fill(folder, manager, self.checkpointer.fingerprint)
        else:
            self.checkpointer.save(folder, manager.buffer, manager.state())

    def prune(self) -> None:
        """Drop the experience of checkpoints whose actor verl has pruned (`trainer.max_actor_ckpt_to_keep`)."""
        keep = [folder for folder in step_dirs(self.root) if (folder / "actor").is_dir()]
        self.checkpointer.prune(self.root, keep)

    def load(self, step: int, manager: ReplayManager | FillManager, known: Collection[str]) -> None:
        """Continue from the checkpoint that verl resumed at `step`; `known` are the question ids of today's dataset.

        Raises ValueError when it has no experience and `exgrpo.resume_without_experience` is false, and the checkpoint's own
        errors, which name file and reason, when it is damaged or belongs to another model.
        """
        folder = self._resumed_folder(step)
        if self.settings.resume_without_experience and folder_of(folder) is None:
            logger.warning("%s has no experience; continuing with an empty buffer", folder)
            return
        try:
            if isinstance(manager, FillManager):
                load_fill(folder, manager, self.checkpointer.fingerprint, self.settings.resume_allow)
            else:
                self._load_buffer(folder, step, manager, known)
        except MissingState as error:
            if folder_of(folder) is not None:  # it is there and a file is missing: damaged, not a run without replay
                raise
            hint = "Set exgrpo.resume_without_experience=true to continue with an empty buffer."
            raise ValueError(f"{error} {hint}") from error

    def _load_buffer(self, folder: Path, step: int, replay: ReplayManager, known: Collection[str]) -> None:
        buffer, state = self.checkpointer.load(
            folder, self.settings.buffer, allow=self.settings.resume_allow, fall_back=self.settings.resume_fall_back
        )
        replay.load_state(state, buffer)
        gone = [question for question in list(buffer.questions()) if question not in known]
        for question in gone:
            buffer.discard(question)
        if gone:
            logger.warning("%d stored questions are no longer in data.train_files and were discarded", len(gone))
        logger.info("experience of step %d: %s", step, {k: v for k, v in buffer.stats(step).items() if v})

    def _resumed_folder(self, step: int) -> Path:
        """The folder verl resumed from."""
        if self.config.trainer.resume_mode == "resume_path":
            return Path(self.config.trainer.resume_from_path)
        return self.root / f"global_step_{step}"
