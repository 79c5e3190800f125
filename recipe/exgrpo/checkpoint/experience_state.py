"""Experience in verl's checkpoints: `global_step_N/experience/`, beside `actor/` and written before verl's tracker file."""

import logging
from collections.abc import Collection
from pathlib import Path

from omegaconf import DictConfig

from recipe.exgrpo.checkpoint.checkpointer import ExperienceCheckpointer
from recipe.exgrpo.checkpoint.errors import CorruptState, MissingState
from recipe.exgrpo.checkpoint.format import folder_of, step_dirs
from recipe.exgrpo.checkpoint.resume import Current, model_fingerprint, reconcile, tokenizer_fingerprint
from recipe.exgrpo.core.buffer import ExperienceBuffer
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies import Policy

logger = logging.getLogger(__name__)


class ExperienceState:
    """Saves, loads and prunes what a policy keeps from step to step, in the step folders of a run.

    Of a policy it knows `store` (without one nothing is saved or loaded), `state_dict` and `load_state_dict`.
    """

    def __init__(self, config: DictConfig, settings: ExGRPOConfig, tokenizer, model_config) -> None:
        self.config = config
        self.settings = settings
        self.root = Path(config.trainer.default_local_dir)
        fingerprint = {
            "model": model_fingerprint(model_config),
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "group_size": config.actor_rollout_ref.rollout.n,
            "policy": settings.policy,
        }
        self.checkpointer = ExperienceCheckpointer(fingerprint)

    def save(self, step: int, policy: Policy) -> None:
        """Write the state after `step`; returns once it is on disk."""
        if policy.store is not None:
            self.checkpointer.save(self.root / f"global_step_{step}", policy.store, policy.state_dict())

    def prune(self) -> None:
        """Drop the experience of checkpoints whose actor verl has pruned (`trainer.max_actor_ckpt_to_keep`)."""
        keep = [folder for folder in step_dirs(self.root) if (folder / "actor").is_dir()]
        self.checkpointer.prune(self.root, keep)

    def load(self, step: int, policy: Policy, known: Collection[str], current: Current) -> None:
        """Continue from the checkpoint that verl resumed at `step`; `known` are the question ids of today's dataset.

        Raises ValueError when it has no experience and `exgrpo.resume_without_experience` is false, and the checkpoint's own
        errors, which name file and reason, when it is damaged or does not fit this run (see `resume.reconcile`).
        """
        if policy.store is None:
            return
        folder = self._resumed_folder(step)
        if self.settings.resume_without_experience and folder_of(folder) is None:
            logger.warning("%s has no experience; continuing with an empty buffer", folder)
            return
        try:
            buffer, stored = self.checkpointer.load(
                folder, self.settings.buffer, fall_back=self.settings.resume_fall_back
            )
        except MissingState as error:
            if folder_of(folder) is not None:  # it is there and a file is missing: damaged, not a run without a store
                raise
            hint = "Set exgrpo.resume_without_experience=true to continue with an empty buffer."
            raise ValueError(f"{error} {hint}") from error
        _discard_unknown(buffer, known)
        now = self.checkpointer.fingerprint
        reconcile(stored.folder, buffer, stored.fingerprint, now, current, self.settings.resume_allow)
        # A policy that takes over another one's store keeps its own state where the other had none.
        same = stored.fingerprint.get("policy") == now["policy"]
        state = stored.extra if same else policy.state_dict() | stored.extra
        buffer.origin = policy.store.origin
        try:
            policy.load_state_dict(state, buffer)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptState(stored.folder, f"its policy state does not fit {now['policy']} ({error!r}).") from error
        logger.info("experience of step %d: %s", step, {k: v for k, v in buffer.stats(step).items() if v})

    def _resumed_folder(self, step: int) -> Path:
        """The folder verl resumed from."""
        if self.config.trainer.resume_mode == "resume_path":
            return Path(self.config.trainer.resume_from_path)
        return self.root / f"global_step_{step}"


def _discard_unknown(buffer: ExperienceBuffer, known: Collection[str]) -> None:
    """Forget the questions that are no longer in the dataset."""
    gone = [question for question in buffer.questions() if question not in known]
    for question in gone:
        buffer.discard(question)
    if gone:
        logger.warning("%d stored questions are no longer in data.train_files and were discarded", len(gone))
