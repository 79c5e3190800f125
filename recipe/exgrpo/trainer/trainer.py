"""Policies on verl's synchronous V1 trainer, by overriding its hooks (`trainer.v1.trainer_mode=exgrpo`).

One step: `_next_train_batch` plans and fetches, `_balance_batch` lets stored trajectories join, `_compute_old_log_prob` puts
pi_past back and rearranges the update, `_compute_advantage` writes the advantages that a policy sets itself, `_update_actor`
trains, `step` closes. What differs between methods is asked of `self.policy` (core/policies); a policy without a loss of its
own, the on-policy baseline, leaves verl's loss and advantage in place.
"""

import contextlib
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import ray
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl import DataProto
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.debug import marked_timer
from verl.utils.debug.metrics import calculate_debug_metrics
from verl.utils.tracking import Tracking
from verl.workers.engine_workers import ActorRolloutRefWorker

from recipe.exgrpo.checkpoint.experience_state import ExperienceState
from recipe.exgrpo.core.buffer import Trajectory
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies import make_policy
from recipe.exgrpo.core.policies.policy import Slot, Tools
from recipe.exgrpo.core.selection import Scores
from recipe.exgrpo.experience.target import Target
from recipe.exgrpo.runs import stopping
from recipe.exgrpo.runs.history import History
from recipe.exgrpo.trainer import lifecycle
from recipe.exgrpo.trainer.cursor import Cursor
from recipe.exgrpo.trainer.extra_rows import Layout
from recipe.exgrpo.trainer.objective import ESTIMATOR, exgrpo_loss, replay_metrics
from recipe.exgrpo.trainer.prompts import current_answers, prompt_builder
from recipe.exgrpo.trainer.rows import read_prompts, require_text, write_advantages
from recipe.exgrpo.trainer.scoring import Candidate, ForwardBudget, behaviour_log_probs, score_candidates
from recipe.exgrpo.trainer.step import Step, batch_metrics
from recipe.exgrpo.trainer.stored_rows import write_behaviour_log_probs
from recipe.exgrpo.trainer.validation import pass_rates
from recipe.exgrpo.trainer.warm_start import by_actor, warm_start
from recipe.exgrpo.trainer.worker import ExGRPOWorker
from verl_ext import polling
from verl_ext.agent_loop import choose_loop
from verl_ext.dataset import index_questions
from verl_ext.metrics_log import JsonlLogger
from verl_ext.platform import assert_platform
from verl_ext.quiet import silence
from verl_ext.rewards.metrics import reward_metrics
from verl_ext.watchdog import Watchdog

logger = logging.getLogger(__name__)


@register_trainer("exgrpo")
class ExGRPOTrainer(PPOTrainerSync):
    """verl's synchronous trainer, asking a policy what to do; `config.exgrpo` holds the settings of `ExGRPOConfig`."""

    def __init__(self, config: DictConfig) -> None:
        assert_platform(config.trainer.device)
        self.settings = ExGRPOConfig.from_mapping(OmegaConf.to_container(config.exgrpo, resolve=True))
        self.group_size = config.actor_rollout_ref.rollout.n
        self.policy = make_policy(self.settings, self.group_size)
        self.watchdog = Watchdog(self.settings.runtime.stall_timeout_s)
        self.metrics_log = JsonlLogger(Path(config.trainer.default_local_dir) / "metrics.jsonl")
        self.history = History(
            Path(config.trainer.default_local_dir) / "history.jsonl", self.settings.runtime.history_mb
        )
        self.current = Step()
        self.training = False
        with open_dict(config):
            # verl derives its asynchronous code paths from any name other than this one.
            config.trainer.v1.trainer_mode = "sync"
            config.algorithm.adv_estimator = "grpo" if self.policy.loss is None else ESTIMATOR
            if self.policy.by_std:
                config.algorithm.norm_adv_by_std_in_grpo = True
            choose_loop(config.actor_rollout_ref.rollout.agent, self.settings.runtime.seeded_rollouts)
        super().__init__(config)

    # ---- set-up ----------------------------------------------------------------------------------------------------

    @property
    def logger(self) -> Tracking:
        return self._tracking

    @logger.setter
    def logger(self, tracking: Tracking) -> None:
        # verl builds its loggers inside `fit`; this is where metrics.jsonl joins them, before anything is logged.
        tracking.logger["jsonl"] = self.metrics_log
        self._tracking = tracking

    def _build_replay_buffer(self) -> ReplayBuffer:
        buffer = super()._build_replay_buffer()
        runtime = self.settings.runtime
        polling.install(buffer, runtime.stall_timeout_s, runtime.poll_min_s, runtime.poll_max_s, self.dead_engine)
        return buffer

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        model = omega_conf_to_dataclass(self.config.actor_rollout_ref.model)
        self.model_type = model.hf_config.model_type
        self.experience = ExperienceState(self.config, self.settings, self.tokenizer, model.hf_config)

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        # Before any device is taken: too few questions, duplicate or missing ids end the run here.
        lifecycle.enough_questions(self.config, len(self.train_dataset))
        self.question_rows = index_questions(self.train_dataset.dataframe["extra_info"])

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role, worker in self.role_worker_mapping.items():
            if worker.__ray_actor_class__ is ActorRolloutRefWorker:
                self.role_worker_mapping[role] = ray.remote(ExGRPOWorker)

    def on_init_end(self) -> None:
        self._stop_before_training()
        self.actor_rollout_wg.set_grad_guard(self.settings.runtime.max_grad_norm)
        if self.policy.loss is not None:
            actor = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
            self.actor_rollout_wg.set_loss_fn(partial(exgrpo_loss, actor, self.policy.loss))
        with self.watchdog.guard("weight sync", self.dead_engine):
            super().on_init_end()

    def on_step_end(self) -> None:
        with self.watchdog.guard("weight sync", self.dead_engine):
            super().on_step_end()
        self._end_if_asked()

    # ---- plan and fetch --------------------------------------------------------------------------------------------

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        """The rows of the policy's plan, with their numbers of rollouts."""
        if (
            num_prompts is not None
        ):  # verl asks for more questions in place of failed groups, or of those without variance
            self._check_generated(num_prompts)
            return self._counted(super()._next_train_batch(num_prompts))
        self.current = Step(number=self.global_steps)
        self.cursor = Cursor(super()._fetch_one_gen_batch, self.train_dataset, self.question_rows)
        rows = [self._row(slot) for slot in self.policy.plan(self.config.data.train_batch_size, self.cursor)]
        batch = tu.concat_tensordict(rows) if len(rows) > 1 else rows[0]
        tu.assign_non_tensor_data(batch, "global_steps", self.global_steps)
        return self._counted(batch)

    def _counted(self, batch: TensorDict) -> TensorDict:
        """The batch with the number of rollouts that the policy wants of each row."""
        wanted = [self.current.slots[uid].rollouts for uid in batch["uid"]]
        tu.assign_non_tensor_stack(batch, "__rollout_n__", wanted)
        return batch

    def _check_generated(self, more: int) -> None:
        """RuntimeError beyond `algorithm.filter_groups.max_num_gen_batches` (0: no bound), which verl's V1 does not look at."""
        bound, size = self.config.algorithm.filter_groups.max_num_gen_batches, self.config.data.train_batch_size
        if 0 < bound * size < len(self.current.slots) + more:
            raise RuntimeError(
                f"{bound} batches of questions were generated in step {self.global_steps}, and too few groups have rewards "
                "that differ: raise algorithm.filter_groups.max_num_gen_batches (0: no bound), or train on other questions."
            )

    def _row(self, slot: Slot) -> TensorDict:
        """The dataset's row for `slot`, which is noted under the row's uid."""
        if slot.planned:
            kind = "replay" if slot.rollouts < self.group_size else "planned"
            row = self.cursor.row(slot.question, f"{kind}{self.global_steps}x{len(self.current.slots)}")
        else:
            row = self.cursor.fetched(slot.question)
        self.current.slots[row["uid"][0]] = slot
        return row

    def _fetch_one_gen_batch(self) -> TensorDict:
        """One more fresh question, in place of a group whose rollouts all failed."""
        return self._row(self.policy.draw(self.cursor))

    # ---- stored trajectories that join -----------------------------------------------------------------------------

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict, **kwargs) -> KVBatchMeta:
        self.current.open(batch)
        if self.policy.store is not None:
            require_text(batch.keys[0], batch.partition_id)
        if self.policy.loss is None:
            batch = self.current.in_order(batch)
        else:
            joining = self.policy.inject(self.current.groups, self._tools, self.global_steps)
            batch = self.current.inject(batch, joining)
        return super()._balance_batch(batch, metrics, **kwargs)

    @property
    def _tools(self) -> Tools:
        return Tools(score=self._score, read=self.current.read, entropies=self.current.entropies)

    def _score(self, trajectories: Sequence[Trajectory]) -> Scores:
        """Scores of stored trajectories under the current policy, in one call."""
        with marked_timer("score_candidates", self.timing_raw):
            candidates = [
                Candidate(prompt, trajectory)
                for prompt, trajectory in zip(self._prompts_of(trajectories), trajectories, strict=True)
            ]
            scores, self.current.scoring_waste = score_candidates(
                self.actor_rollout_wg, candidates, self._data_parallel_size(), self._forward_budget()
            )
        self.current.scoring_calls += 1
        return scores

    def _prompts_of(self, trajectories: Sequence[Trajectory]) -> list:
        """Prompt ids of each: its own where they are stored, else those of its question's fresh rollouts."""
        step = self.current
        siblings = {group.question: keys[0] for group, keys in zip(step.groups, step.keys, strict=True)}
        asked = dict.fromkeys(t.question for t in trajectories if not len(t.prompt_ids))
        keys = [siblings[question] for question in asked]
        prompts = dict(zip(asked, read_prompts(keys, step.partition_id) if keys else (), strict=True))
        return [t.prompt_ids if len(t.prompt_ids) else prompts[t.question] for t in trajectories]

    def _data_parallel_size(self) -> int:
        info = self.actor_rollout_wg._dispatch_info
        if "actor" not in info:
            info["actor"] = self.actor_rollout_wg._query_dispatch_info("actor")
        return max(info["actor"]) + 1

    def _forward_budget(self) -> ForwardBudget:
        rollout = self.config.actor_rollout_ref.rollout
        tokens = self.settings.runtime.score_max_tokens or rollout.log_prob_max_token_len_per_gpu
        packed = bool(self.config.actor_rollout_ref.model.use_remove_padding)
        return ForwardBudget(temperature=rollout.temperature, max_tokens=tokens, packed=packed)

    # ---- train -----------------------------------------------------------------------------------------------------

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._compute_old_log_prob(batch, metrics)
        loss, step = self.policy.loss, self.current
        if loss is None:
            return batch
        if step.joined:
            if loss.importance == "past":
                write_behaviour_log_probs(step.joined, batch.partition_id)
            if self.config.actor_rollout_ref.rollout.calculate_log_probs:
                metrics.update(self._engine_gap())
        with marked_timer("experience", self.timing_raw):
            arrangement = self.policy.arrange(step.groups, self._tools, self.global_steps)
            ranks = self._data_parallel_size() if arrangement.extra else 1
            return step.arrange(batch, arrangement, self._layout(len(batch), ranks), loss.denominator)

    def _layout(self, rows: int, ranks: int = 1) -> Layout:
        """How verl cuts a batch of `rows` over `ranks`, before extra ones come on top."""
        mini_batch = self.config.actor_rollout_ref.actor.ppo_mini_batch_size * self.group_size
        return Layout(max(1, rows // mini_batch), ranks, self.group_size, self.tokenizer.eos_token_id)

    def _engine_gap(self) -> dict:
        """verl's `training/rollout_probs_diff_*` on fresh rows; stored log-probs say nothing about today's engines."""
        fields = ["responses", "response_mask", "rollout_log_probs", "old_log_probs"]
        data = tq.kv_batch_get(
            keys=self.current.fresh_keys, partition_id=self.current.partition_id, select_fields=fields
        )
        return calculate_debug_metrics(DataProto(batch=data.to_padded_tensor()))

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._compute_advantage(batch, metrics)
        write_advantages(self.current.advantages, batch.partition_id)
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch.extra_info["replay_active"] = self.policy.active
        actor, step = self.config.actor_rollout_ref.actor, self.current
        updates = step.updates or self._layout(len(batch)).updates
        if step.sequences is not None:
            batch.extra_info["sequences"] = step.sequences
        usual = actor.ppo_mini_batch_size
        try:
            # Where verl reads the size of a mini-batch: extra rows make mini-batches larger, not more of them.
            actor.ppo_mini_batch_size = len(batch) // (updates * self.group_size)
            batch = super()._update_actor(batch, metrics)
        finally:
            actor.ppo_mini_batch_size = usual
        skipped = metrics.get("actor/skipped_updates", 0.0)
        metrics["actor/skipped_updates"] = skipped * updates * actor.ppo_epochs
        metrics.update(replay_metrics(metrics))
        return batch

    # ---- close and report ------------------------------------------------------------------------------------------

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        timing_raw.update(score_candidates=0.0, experience=0.0)
        batch = super().step(metrics, timing_raw)
        with marked_timer("experience", timing_raw):
            metrics.update(self._close())
        return batch

    def _close(self) -> dict[str, float]:
        """Bookkeeping of the finished step; returns its `batch/`, reward and `experience/` metrics."""
        step = self.current
        self.policy.finish(step.groups, self._tools, self.global_steps, step.pass_rate)
        threshold = self.settings.bookkeeping.success_threshold
        metrics = batch_metrics(step.groups, threshold) | step.tool_metrics() | reward_metrics(step.infos)
        metrics["batch/rows_out_of_update"] = float(step.rows_out)
        metrics["batch/rows_out_of_denominator"] = float(step.rows_uncounted)
        metrics["batch/rows_updated"] = float(step.rows - step.rows_out + step.extra_rows)
        metrics["batch/generated_rollouts"] = float(sum(slot.rollouts for slot in step.slots.values()))
        metrics["batch/history_bytes"] = float(self.history.append(step.history(self.policy.choices(), threshold)))
        metrics["batch/discarded_groups"] = float(len(step.slots) - len(step.groups))
        experience = self.policy.metrics(self.global_steps) | {
            "skipped_draws": self.cursor.skipped,
            "scoring_waste": step.scoring_waste,
            "scoring_calls": step.scoring_calls,
            "extra_rows": step.extra_rows,
        }
        return metrics | {f"experience/{name}": float(value) for name, value in experience.items()}

    def _val_metrics_update(
        self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts
    ) -> dict[str, float]:
        metrics = super()._val_metrics_update(
            data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts
        )
        return metrics | pass_rates(data_sources, reward_extra_infos_dict, expected_acc_counts)

    # ---- checkpoint ------------------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        # Before verl's tracker file is written: a checkpoint that verl calls complete always has its experience.
        def save() -> None:
            self.experience.save(self.global_steps, self.policy)
            lifecycle.write_data_state(self._run_folder / f"global_step_{self.global_steps}", self.data_state)
            super(ExGRPOTrainer, self)._save_checkpoint()

        keep = self.config.trainer.max_actor_ckpt_to_keep
        lifecycle.save_checkpoint(self._run_folder, self.global_steps, keep, save)
        self.experience.prune()
        self.saved_step = self.global_steps

    def _load_checkpoint(self) -> None:
        self._stop_before_training()
        super()._load_checkpoint()
        self.saved_step = self.global_steps
        # What an interrupted run logged after its last checkpoint never happened; a run from scratch starts a new log.
        self.metrics_log.rewind(self.global_steps or -1)
        self.history.rewind(self.global_steps)
        current = current_answers(self.config, self.tokenizer, self.model_type, self.train_dataset, self.question_rows)
        self.data_state = lifecycle.data_state(self.config, len(self.train_dataset))
        if self.policy.store is not None:
            if self.global_steps == 0 and self.settings.experience.init_from:
                self._warm_start()
            self.policy.store.origin = current.origin
        if self.global_steps > 0:
            if not lifecycle.same_data(self._resumed_folder, self.data_state):
                self.train_dataloader.next_iter_state = None  # verl has put the old position there
            self.experience.load(self.global_steps, self.policy, self.question_rows, current)

    def _warm_start(self) -> None:
        """Fill the empty store of a new run. The actor has its start weights, and the rollout engines sleep."""
        render = prompt_builder(self.config, self.tokenizer, self.model_type).build_initial_tokens
        target = Target.of(self.config, self.tokenizer, render, keep=self.question_rows.__contains__, born=0)
        warm_start(self.policy.store, target, self.settings.experience, by_actor(self._log_probs))

    def _log_probs(self, candidates: list[Candidate]) -> list:
        """Log-probs of responses under the current weights, in one call."""
        return behaviour_log_probs(
            self.actor_rollout_wg, candidates, self._data_parallel_size(), self._forward_budget()
        )

    @property
    def _run_folder(self) -> Path:
        return Path(self.config.trainer.default_local_dir)

    @property
    def _resumed_folder(self) -> Path:
        if self.config.trainer.resume_mode == "resume_path":
            return Path(self.config.trainer.resume_from_path)
        return self._run_folder / f"global_step_{self.global_steps}"

    # ---- an end before the last step -------------------------------------------------------------------------------

    def _stop_before_training(self) -> None:
        if stopping.requested(self._run_folder):
            raise stopping.Stopped("stopped before the first step, as asked")

    def _end_if_asked(self) -> bool:
        """Let verl's loop end with this step; `on_train_end` then saves."""
        asked = stopping.requested(self._run_folder)
        if asked:
            self.total_training_steps = min(self.total_training_steps, self.global_steps)
        return asked

    def _validate(self) -> dict[str, float]:
        if not self.training:
            self._stop_before_training()
        elif self._end_if_asked():
            return {}  # there may be no time for it; a resumed run validates before it goes on
        metrics = super()._validate()
        self._end_if_asked()
        return metrics

    def fit(self, agent_loop_manager) -> None:
        with contextlib.ExitStack() as self._ending:
            super().fit(agent_loop_manager)

    def _shutdown_dump_executor(self) -> None:
        """After it verl only prints the last validation: once more, or "None" where there was none."""
        super()._shutdown_dump_executor()
        self._ending.enter_context(silence())

    def on_train_begin(self) -> None:
        self.training = True
        super().on_train_begin()

    def on_train_end(self) -> None:
        super().on_train_end()
        self.global_steps -= 1  # verl's loop has counted on
        if self.config.trainer.save_freq > 0 and self.saved_step != self.global_steps:
            self._save_checkpoint()

    def dead_engine(self) -> str | None:
        """A sentence about a vLLM engine that is dead; None while all live."""
        manager = getattr(self, "llm_server_manager", None)
        return lifecycle.dead_engine([replica.server_address for replica in manager.get_replicas()] if manager else [])
