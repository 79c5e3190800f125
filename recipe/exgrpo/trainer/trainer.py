"""ExGRPO on verl's synchronous V1 trainer, by overriding its hooks (`trainer.v1.trainer_mode=exgrpo`).

One step: `_next_train_batch` plans and fetches, `_balance_batch` scores and injects, `_compute_old_log_prob` restores
pi_past, `_update_actor` trains with the mixed loss, `step` collects. Mode `masked` only takes groups out of the update
(`_balance_batch`), mode `fill` exchanges them for past successes (`_compute_old_log_prob`). With `exgrpo.enable=false` every
override hands straight on to verl: what remains is the on-policy twin with the same order of rows, guards and metrics.
"""

import logging
from functools import partial
from pathlib import Path

import numpy as np
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
from verl.utils.dataset.rl_dataset import collate_fn
from verl.utils.debug import marked_timer
from verl.utils.debug.metrics import calculate_debug_metrics
from verl.utils.tracking import Tracking
from verl.workers.engine_workers import ActorRolloutRefWorker

import verl_ext
from recipe.exgrpo.checkpoint.experience_state import ExperienceState
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies.fill import FILL_METRIC_NAMES, FillManager, replay_loss
from recipe.exgrpo.core.policies.replay import METRIC_NAMES, ReplayManager
from recipe.exgrpo.core.sampler import interleave
from recipe.exgrpo.trainer import advantage
from recipe.exgrpo.trainer.collection import batch_metrics, collect, fresh_keys, read_outcomes
from recipe.exgrpo.trainer.filling import Filling, fill_batch, write_advantages
from recipe.exgrpo.trainer.injection import Replay, in_plan_order, inject, siblings, write_behaviour_log_probs
from recipe.exgrpo.trainer.masking import mask_groups
from recipe.exgrpo.trainer.objective import exgrpo_loss, replay_metrics
from recipe.exgrpo.trainer.scoring import Candidate, ForwardBudget, score_candidates
from recipe.exgrpo.trainer.worker import ExGRPOWorker
from verl_ext import polling
from verl_ext.dataset import index_questions, question_id
from verl_ext.metrics_log import JsonlLogger
from verl_ext.platform import assert_platform
from verl_ext.rewards.metrics import reward_metrics
from verl_ext.watchdog import Watchdog

logger = logging.getLogger(__name__)
AGENT_LOOPS = Path(verl_ext.__file__).with_name("agent_loops.yaml")


@register_trainer("exgrpo")
class ExGRPOTrainer(PPOTrainerSync):
    """verl's synchronous trainer with experience replay; `config.exgrpo` holds the settings of `ExGRPOConfig`."""

    def __init__(self, config: DictConfig) -> None:
        assert_platform(config.trainer.device)
        self.settings = ExGRPOConfig.from_mapping(OmegaConf.to_container(config.exgrpo, resolve=True))
        self.group_size = config.actor_rollout_ref.rollout.n
        self.mode = self.settings.mode if self.settings.enable else "off"
        self.replay = ReplayManager(self.settings, self.group_size) if self.mode == "replay" else None
        self.fill = FillManager(self.settings, self.group_size) if self.mode == "fill" else None
        self.watchdog = Watchdog(self.settings.runtime.stall_timeout_s)
        self.metrics_log = JsonlLogger(Path(config.trainer.default_local_dir) / "metrics.jsonl")
        self.questions: dict[str, str] = {}  # uid -> question id of this step, in batch order
        self.planned: dict[str, str] = {}  # the part of it that is replayed
        self.replays: list[Replay] = []
        self.passed_over = 0
        self.reuse_retired = False
        self.scoring_waste, self.scoring_calls = 0.0, 0
        self.dropped = 0  # trajectories of this step that are out of the update
        self.filling: Filling | None = None
        self.outcomes: tuple[dict[str, float], list[dict]] | None = None  # of all rollouts, before rows leave
        with open_dict(config):
            # verl derives its asynchronous code paths from any name other than this one.
            config.trainer.v1.trainer_mode = "sync"
            config.algorithm.adv_estimator = advantage.NAME if self.settings.enable else "grpo"
            if self.settings.runtime.seeded_rollouts:
                config.actor_rollout_ref.rollout.agent.default_agent_loop = "exgrpo_seeded_single_turn"
                config.actor_rollout_ref.rollout.agent.agent_loop_config_path = str(AGENT_LOOPS)
        super().__init__(config)

    @property
    def manager(self) -> ReplayManager | FillManager | None:
        """What is saved, loaded and scheduled: replay or fill; None on-policy and in masked mode."""
        return self.replay or self.fill

    @property
    def receiving(self) -> dict[str, str]:
        """The planned questions whose group receives a stored trajectory: all, or by `exgrpo.inject: false` none."""
        return self.planned if self.settings.inject else {}

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
        polling.install(buffer, runtime.stall_timeout_s, runtime.poll_min_s, runtime.poll_max_s)
        return buffer

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        model = omega_conf_to_dataclass(self.config.actor_rollout_ref.model)
        self.experience = ExperienceState(self.config, self.settings, self.tokenizer, model.hf_config)

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        # Before any device is taken: duplicate or missing ids end the run here.
        self.question_rows = index_questions(self.train_dataset.dataframe["extra_info"])

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role, worker in self.role_worker_mapping.items():
            if worker.__ray_actor_class__ is ActorRolloutRefWorker:
                self.role_worker_mapping[role] = ray.remote(ExGRPOWorker)

    def on_init_end(self) -> None:
        self.actor_rollout_wg.set_grad_guard(self.settings.runtime.max_grad_norm)
        if self.settings.enable:
            actor = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
            loss = replay_loss(self.settings.loss) if self.fill else self.settings.loss
            drops_rows = self.mode in ("fill", "masked")
            self.actor_rollout_wg.set_loss_fn(partial(exgrpo_loss, actor, loss, drops_rows=drops_rows))
        with self.watchdog.guard("weight sync"):
            super().on_init_end()

    def on_step_end(self) -> None:
        with self.watchdog.guard("weight sync"):
            super().on_step_end()

    # ---- plan and fetch --------------------------------------------------------------------------------------------

    def _fetch_one_gen_batch(self) -> TensorDict:
        """One fresh question, passing over those retired or already in this step; any question once none is left."""
        if self.replay is None:
            row = super()._fetch_one_gen_batch()
            self.questions[row["uid"][0]] = question_id(row["extra_info"][0])
            return row
        for _ in range(2 * len(self.train_dataset)):  # an epoch from anywhere in one may end early in the next
            row = super()._fetch_one_gen_batch()
            question = question_id(row["extra_info"][0])
            retired = self.replay.buffer.is_retired(question) and not self.reuse_retired
            if not retired and question not in self.questions.values():
                break
            self.passed_over += 1
        self.questions[row["uid"][0]] = question
        return row

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        """n replayed questions with K - 1 rollouts each and B - n fresh ones with K (Alg. 1)."""
        if num_prompts is not None:  # verl refills failed groups with fresh questions
            return super()._next_train_batch(num_prompts)
        self.questions, self.planned, self.replays, self.passed_over = {}, {}, [], 0
        if self.replay is None:
            return super()._next_train_batch()
        size = self.config.data.train_batch_size
        planned = self.replay.plan(size)
        self.reuse_retired = self._unretired() < size
        parts = [self._replayed_prompts(planned)] if planned else []
        if size > len(planned):
            parts.append(super()._next_train_batch(size - len(planned)))
        batch = tu.concat_tensordict(parts) if len(parts) > 1 else parts[0]
        order = interleave(list(range(len(planned))), list(range(len(planned), size)))
        batch = tu.index_select_tensor_dict(batch, order)
        self.questions = {uid: self.questions[uid] for uid in batch["uid"]}
        rollouts = [self.group_size - (uid in self.receiving) for uid in self.questions]
        tu.assign_non_tensor_data(batch, "global_steps", self.global_steps)
        tu.assign_non_tensor_stack(batch, "__rollout_n__", rollouts)
        return batch

    def _unretired(self) -> int:
        """Questions of the dataset that are not retired; warns when they no longer fill a batch."""
        left = len(self.question_rows) - len(self.replay.buffer.retired)
        if left < self.config.data.train_batch_size:
            logger.warning("only %d questions are not retired; training on retired ones again", left)
        return left

    def _replayed_prompts(self, planned: list[str]) -> TensorDict:
        """Dataset rows of the planned questions, each with a uid of its own."""
        rows = collate_fn([self.train_dataset[self.question_rows[question]] for question in planned])
        # Same form of uid as verl's fresh rows, which must not contain an underscore.
        rows["uid"] = np.array([f"replay{self.global_steps}x{i}" for i in range(len(planned))], dtype=object)
        self.planned = dict(zip(rows["uid"], planned, strict=True))
        self.questions |= self.planned
        prompts = tu.get_tensordict(rows)
        tu.assign_non_tensor_data(prompts, "global_steps", self.global_steps)  # as on fresh rows, to be concatenated
        return prompts

    # ---- score and inject ------------------------------------------------------------------------------------------

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict, **kwargs) -> KVBatchMeta:
        if self.replay:
            batch = self._inject(batch)
        elif self.mode in ("fill", "masked"):
            batch = inject(batch, [], self.group_size, list(self.questions))
            self.outcomes = read_outcomes(batch.keys, batch.partition_id)
        else:
            batch = in_plan_order(batch, list(self.questions))
        if self.mode == "masked":
            threshold = self.settings.bookkeeping.success_threshold
            self.dropped = mask_groups(batch, self.outcomes[0], self.settings.mask.band, threshold)
        return super()._balance_batch(batch, metrics, **kwargs)

    def _inject(self, batch: KVBatchMeta) -> KVBatchMeta:
        """Add the selected trajectory of each planned question whose fresh siblings did not all fail."""
        groups = siblings(batch.keys)
        live = {uid: question for uid, question in self.receiving.items() if uid in groups}
        with marked_timer("score_candidates", self.timing_raw):
            scores = self._score(live, groups, batch.partition_id)
        for uid, question in live.items():
            trajectory = self.replay.select(question, scores.get(uid))
            self.replays.append(Replay(f"{uid}_{self.group_size - 1}_0", groups[uid][0], trajectory))
            self.replay.replayed(trajectory, self.global_steps)
        return inject(batch, self.replays, self.group_size, list(self.questions))

    def _score(self, live: dict[str, str], groups: dict[str, list[str]], partition_id: str) -> dict:
        """Scores of all stored trajectories of the live questions, by uid; empty when selection needs none."""
        self.scoring_waste, self.scoring_calls = 0.0, 0
        if not live or not self.replay.needs_scores:
            return {}
        buffer = self.replay.buffer
        first = [groups[uid][0] for uid in live]
        prompts = tq.kv_batch_get(keys=first, partition_id=partition_id, select_fields=["prompts"])["prompts"]
        owners = [(uid, row, prompts[i]) for i, uid in enumerate(live) for row in buffer.rows(live[uid])]
        candidates = [Candidate(prompt, buffer.trajectory(int(row))) for _, row, prompt in owners]
        self.scoring_calls += 1
        scores, self.scoring_waste = score_candidates(
            self.actor_rollout_wg, candidates, self._data_parallel_size(), self._forward_budget()
        )
        of = np.array([uid for uid, _, _ in owners])
        return {uid: scores[of == uid] for uid in live}

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
        if self.replays:
            if self.settings.loss.importance == "past":
                write_behaviour_log_probs(self.replays, batch.partition_id)
            if self.config.actor_rollout_ref.rollout.calculate_log_probs:
                metrics.update(self._engine_gap(batch))
        return self._exchange(batch) if self.fill else batch

    def _exchange(self, batch: KVBatchMeta) -> KVBatchMeta:
        """Fill mode: past successes for groups without signal, now that this step's log-probs are known."""
        with marked_timer("experience", self.timing_raw):
            self.filling = fill_batch(self.fill, batch, self.outcomes[0], self.questions, self.global_steps)
        self.dropped = self.filling.dropped
        return self.filling.batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._compute_advantage(batch, metrics)
        if self.filling:
            write_advantages(self.filling.advantages, batch.partition_id)
        return batch

    def _engine_gap(self, batch: KVBatchMeta) -> dict:
        """verl's `training/rollout_probs_diff_*` on fresh rows; stored log-probs say nothing about today's engines."""
        fields = ["responses", "response_mask", "rollout_log_probs", "old_log_probs"]
        keys = fresh_keys(batch, self.replays)
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=fields)
        return calculate_debug_metrics(DataProto(batch=data.to_padded_tensor()))

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch.extra_info["replay_active"] = bool(self.manager and self.manager.active)
        batch = super()._update_actor(batch, metrics)
        actor = self.config.actor_rollout_ref.actor
        updates = len(batch) // (actor.ppo_mini_batch_size * self.group_size) * actor.ppo_epochs
        metrics["actor/skipped_updates"] = metrics.get("actor/skipped_updates", 0.0) * updates
        metrics.update(replay_metrics(metrics))
        return batch

    # ---- collect and report ----------------------------------------------------------------------------------------

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        timing_raw.update(score_candidates=0.0, experience=0.0)
        batch = super().step(metrics, timing_raw)
        with marked_timer("experience", timing_raw):
            metrics.update(self._collect(batch))
        return batch

    def _collect(self, batch: KVBatchMeta) -> dict[str, float]:
        rewards, infos = self.outcomes or read_outcomes(fresh_keys(batch, self.replays), batch.partition_id)
        metrics = batch_metrics(rewards, self.settings.bookkeeping.success_threshold) | reward_metrics(infos)
        metrics["batch/dropped"] = float(self.dropped)
        experience = dict.fromkeys(METRIC_NAMES, 0.0)
        filled = dict.fromkeys(FILL_METRIC_NAMES, 0.0)
        if self.replay:
            collect(self.replay, batch, rewards, self.replays, self.questions, self.global_steps)
            self.replay.finish_step(self.global_steps, metrics["batch/pass_rate"])
            experience |= self.replay.metrics(self.global_steps)
        if self.fill:
            self.fill.finish_step(self.global_steps, metrics["batch/pass_rate"])
            filled |= self.fill.metrics()
        experience["passed_over"] = self.passed_over
        experience |= {"scoring_waste": self.scoring_waste, "scoring_calls": self.scoring_calls}
        metrics |= {f"fill/{name}": float(value) for name, value in filled.items()}
        return metrics | {f"experience/{name}": float(value) for name, value in experience.items()}

    def _val_metrics_update(
        self, data_sources, sample_uids, reward_extra_infos_dict, *args, **kwargs
    ) -> dict[str, float]:
        metrics = super()._val_metrics_update(data_sources, sample_uids, reward_extra_infos_dict, *args, **kwargs)
        scores = reward_extra_infos_dict.get("acc") or reward_extra_infos_dict["reward"]
        metrics["val/pass_rate"] = float(np.mean([score for score in scores if score is not None]))
        return metrics

    # ---- checkpoint ------------------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        # Before verl's tracker file is written: a checkpoint that verl calls complete always has its experience.
        if self.manager:
            self.experience.save(self.global_steps, self.manager)
        super()._save_checkpoint()
        self.experience.prune()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        # What an interrupted run logged after its last checkpoint never happened; a run from scratch starts a new log.
        self.metrics_log.rewind(self.global_steps or -1)
        if self.manager and self.global_steps > 0:
            self.experience.load(self.global_steps, self.manager, known=self.question_rows)
