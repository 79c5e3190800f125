#!/usr/bin/env bash
# ExGRPO on the embedded toy task (chained modular arithmetic, a 0.3M-parameter Qwen2): the real verl, FSDP2 and vLLM on CPU.
#
#   bash scripts/run_exgrpo_toy_cpu.sh                          # ExGRPO, 60 steps, into outputs/toy
#   bash scripts/run_exgrpo_toy_cpu.sh exgrpo.policy=on_policy      # its matched on-policy baseline
#   RUN=outputs/mine STEPS=100 bash scripts/run_exgrpo_toy_cpu.sh [hydra overrides]
#
# The same command again resumes from the newest checkpoint in $RUN. Cost: 2 cores, 6 GB, about a minute to start.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' && exit 0 ;; esac
cd "$(dirname "$0")/.."
source scripts/launch.sh   # for _value: folders may have any name

PYTHON=${PYTHON:-.venv/bin/python}
RUN=${RUN:-outputs/toy}
DATA=${DATA:-outputs/toy_data}
STEPS=${STEPS:-60}
# For a model this small, threads that wait for each other cost more than they bring, and the attention of a long pack, which is
# quadratic without flash-attention, more than all the rest.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
[ -f "$DATA/train.parquet" ] || "$PYTHON" data/make_toy.py data --out "$DATA"

exec "$PYTHON" -m recipe.exgrpo.main hardware=cpu \
  actor_rollout_ref.model.path=data/toy/model \
  data.train_files="$(_value "$DATA/train.parquet")" data.val_files="$(_value "$DATA/heldout.parquet")" \
  data.train_batch_size=8 data.max_prompt_length=48 data.max_response_length=64 \
  actor_rollout_ref.actor.ppo_mini_batch_size=4 actor_rollout_ref.actor.ppo_max_token_len_per_gpu=512 \
  actor_rollout_ref.actor.optim.lr=1e-4 \
  actor_rollout_ref.rollout.max_model_len=128 actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=512 \
  actor_rollout_ref.rollout.val_kwargs.temperature=1.0 \
  trainer.default_local_dir="$(_value "$RUN")" trainer.experiment_name="$(_value "$(basename "$RUN")")" \
  trainer.total_training_steps="$STEPS" trainer.test_freq=20 trainer.save_freq=20 \
  "$@"
