#!/usr/bin/env bash
# ExGRPO with a tool on the embedded tool task (arithmetic modulo 100 with a calculator): several turns in each response, with
# the real verl, FSDP2 and vLLM on CPU.
#
#   bash scripts/run_exgrpo_tool_cpu.sh                           # ExGRPO, 60 steps, into outputs/tool
#   bash scripts/run_exgrpo_tool_cpu.sh exgrpo.policy=on_policy   # its matched on-policy baseline (set RUN to keep both)
#   bash scripts/run_exgrpo_tool_cpu.sh method=refill             # zero-variance refill
#
# STEPS (60), DATA (folder of the parquet files, made where missing: outputs/tool_data). Re-run the same command to resume.
# Cost: 2 cores, 6 GB.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
# shellcheck source=scripts/tool_task.sh
source "$(dirname "${BASH_SOURCE[0]}")/tool_task.sh"

HARDWARE=${HARDWARE:-cpu}
RUN=${RUN:-outputs/tool}
MODEL=${MODEL:-data/tool/model}
DATA=${DATA:-outputs/tool_data}
# As in run_exgrpo_toy_cpu.sh: threads that wait for each other cost more than they bring, and so does a large token budget.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# shellcheck disable=SC2329 # launch.sh calls it
prepare() {
  make_tool_data "$DATA"
}

launch "${TOOL_TASK[@]}" \
  data.train_files="$(_text "$DATA/train.parquet")" data.val_files="$(_text "$DATA/heldout.parquet")" \
  data.train_batch_size=8 \
  actor_rollout_ref.actor.ppo_mini_batch_size=4 actor_rollout_ref.actor.ppo_max_token_len_per_gpu=512 \
  actor_rollout_ref.actor.optim.lr=1e-4 \
  actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=512 \
  actor_rollout_ref.rollout.val_kwargs.temperature=1.0 \
  trainer.total_training_steps="${STEPS:-60}" trainer.test_freq=20 trainer.save_freq=20 -- "$@"
