#!/usr/bin/env bash
# The study on the real stack: the toy model through verl, FSDP2 and vLLM on CPU, one run per variant and seed, and a report.
#
#   bash scripts/study_stack.sh                                          # on_policy and exgrpo, seeds 0 1 2, 60 steps
#   VARIANTS="on_policy exgrpo refill" OUT=outputs/mine bash scripts/study_stack.sh [hydra overrides]
#   SCRIPT=scripts/run_exgrpo_smollm2_cpu.sh TASK=sums bash scripts/study_stack.sh      # another model and task
#
# Environment: VARIANTS (presets of recipe/exgrpo/config/method or /ablation; the others are compared with the first),
# SEEDS ("0 1 2"), STEPS (60), SAMPLES (responses to each held-out question, 4),
# SCRIPT (makes one run: scripts/run_exgrpo_toy_cpu.sh, whose held-out questions are 128; its variables are handed on),
# OUT (outputs/study_stack, with _TASK where TASK is set), PYTHON (.venv/bin/python), RUNNER (a prefix of each run's command, such
# as a lock).
#
# A run is OUT/VARIANT-sSEED, its console output train.log in there. Re-run the same command to skip finished runs, resume an
# interrupted one and go on. --dry-run prints each run's overrides. Cost with the toy: 2 cores, 6 GB, three to five minutes per run.
set -euo pipefail
dry="" given=()
for argument in "$@"; do
  case $argument in
    -h | --help) sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' && exit 0 ;;
    --dry-run) dry=1 ;;
    *) given+=("$argument") ;;
  esac
done
cd "$(dirname "$0")/.."

export PYTHON=${PYTHON:-.venv/bin/python}
OUT=${OUT:-outputs/study_stack${TASK:+_$TASK}}
SCRIPT=${SCRIPT:-scripts/run_exgrpo_toy_cpu.sh}
STEPS=${STEPS:-60}
read -ra variants <<<"${VARIANTS:-on_policy exgrpo}"
read -ra seeds <<<"${SEEDS:-0 1 2}"
read -ra runner <<<"${RUNNER:-}"

# The hydra override that chooses the preset of a variant.
preset_of() {
  local group
  for group in method ablation; do
    [ ! -f "recipe/exgrpo/config/$group/$1.yaml" ] || { echo "$group=$1" && return; }
  done
  echo "study_stack.sh: no variant '$1': there is no recipe/exgrpo/config/{method,ablation}/$1.yaml" >&2
  return 2
}

finished() {
  grep -qs "^{\"step\": $STEPS," "$1/metrics.jsonl"
}

# A line after every tenth step of the run in folder $1, until this is killed.
follow() {
  local said=0 step
  while sleep 2; do
    step=$(grep -os '^{"step": [0-9]*' "$1/metrics.jsonl" | tail -n 1 | tr -dc 0-9) || continue
    [ "$((step / 10))" -gt "$((said / 10))" ] || continue
    said=$step
    echo "    step $step of $STEPS"
  done
}

# start VARIANT SEED ARGUMENT...: the script of one run, by its variant and seed.
start() {
  local run=$OUT/$1-s$2 seed=$2 preset
  preset=$(preset_of "$1")
  shift 2
  # The seed decides the order of questions, every draw from the buffer and, by seeded requests, every sampled token: runs of one
  # seed start from the same figures and meet the same questions, which makes paired differences narrower.
  RUN=$run DATA=$OUT/data "${runner[@]}" bash "$SCRIPT" "$preset" \
    "data.seed=$seed" exgrpo.runtime.seeded_rollouts=true \
    "actor_rollout_ref.rollout.val_kwargs.n=${SAMPLES:-4}" \
    trainer.val_before_train=true trainer.test_freq=10 trainer.save_freq=20 trainer.max_actor_ckpt_to_keep=1 \
    "${given[@]}" "$@"
}

# run_one VARIANT SEED
run_one() {
  local run=$OUT/$1-s$2 code=0 watcher
  mkdir -p "$run"
  follow "$run" &
  watcher=$!
  start "$1" "$2" >>"$run/train.log" 2>&1 || code=$?
  kill "$watcher" 2>/dev/null || true
  [ "$code" -eq 0 ] || { tail -n 20 "$run/train.log" >&2 && echo "study_stack.sh: $run failed, exit code $code" >&2; }
  return "$code"
}

report() {
  local groups=() runs variant seed
  for variant in "${variants[@]}"; do
    runs=""
    for seed in "${seeds[@]}"; do runs+=${runs:+,}$OUT/$variant-s$seed; done
    groups+=(--group "$variant=$runs")
  done
  "$PYTHON" -m recipe.exgrpo.cli.main report "${groups[@]}" --against "${variants[0]}" --out "$OUT"
}

for variant in "${variants[@]}"; do preset_of "$variant" >/dev/null; done
export STEPS
# Ctrl-C does not reach what runs in the background. A job that is gone already must not become the exit code.
trap 'jobs -p | xargs -r kill 2>/dev/null || true' EXIT
number=0
for seed in "${seeds[@]}"; do
  for variant in "${variants[@]}"; do
    number=$((number + 1))
    head="[$number/$((${#seeds[@]} * ${#variants[@]}))] $variant, seed $seed"
    if finished "$OUT/$variant-s$seed"; then
      echo "$head: done before"
      continue
    fi
    if [ -n "$dry" ]; then
      echo "$head" && start "$variant" "$seed" --dry-run
      continue
    fi
    echo "$head: $(date +%H:%M:%S), log in $OUT/$variant-s$seed/train.log"
    started=$SECONDS
    run_one "$variant" "$seed"
    echo "$head: done after $((SECONDS - started)) s"
  done
done
[ -n "$dry" ] || report
