#!/usr/bin/env bash
# ExGRPO on the embedded toy task (chained modular arithmetic, a 0.3M-parameter Qwen2): the real verl, FSDP2 and vLLM on CPU.
#
#   bash scripts/run_exgrpo_toy_cpu.sh                           # ExGRPO, 60 steps, into outputs/toy
#   bash scripts/run_exgrpo_toy_cpu.sh exgrpo.policy=on_policy   # its matched on-policy baseline
#   RUN=outputs/mine STEPS=100 bash scripts/run_exgrpo_toy_cpu.sh [hydra overrides]
#
# STEPS (60), DATA (folder of the parquet files, made where missing: outputs/toy_data). Re-run the same command to resume.
# Cost: 2 cores, 6 GB, about a minute to start.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

HARDWARE=${HARDWARE:-cpu}
RUN=${RUN:-outputs/toy}
MODEL=${MODEL:-data/toy/model}
DATA=${DATA:-outputs/toy_data}
# For a model this small, threads that wait for each other cost more than they bring; and so does a large micro-batch token
# budget: without flash-attention, attention is quadratic in the tokens packed together.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

prepare() {
  [ -f "$DATA/train.parquet" ] || "$PYTHON" data/make_toy.py data --out "$DATA"
}

launch data.train_files="$(_text "$DATA/train.parquet")" data.val_files="$(_text "$DATA/heldout.parquet")" \
  data.train_batch_size=8 data.max_prompt_length=48 data.max_response_length=64 \
  actor_rollout_ref.actor.ppo_mini_batch_size=4 actor_rollout_ref.actor.ppo_max_token_len_per_gpu=512 \
  actor_rollout_ref.actor.optim.lr=1e-4 \
  actor_rollout_ref.rollout.max_model_len=128 actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=512 \
  actor_rollout_ref.rollout.val_kwargs.temperature=1.0 \
  trainer.total_training_steps="${STEPS:-60}" trainer.test_freq=20 trainer.save_freq=20 -- "$@"
