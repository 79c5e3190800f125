#!/usr/bin/env bash
# Evaluate a model on the paper's benchmarks beside the paper's results: AIME and AMC as Avg@32, the others as Pass@1.
#
#   MODEL=Qwen/Qwen2.5-Math-1.5B bash scripts/evaluate.sh --backbone qwen2.5-math-1.5b     # all visible GPUs
#   MODEL=outputs/exgrpo-1.5b/global_step_500 GPUS=8 TP=2 bash scripts/evaluate.sh         # a verl checkpoint, merged first
#   MODEL=data/toy/model DATA=outputs/toy_data/heldout.parquet bash scripts/evaluate.sh --max-tokens 64    # on CPU
#
# Environment: MODEL (HF folder, hub id or global_step_N), DATA (parquet files or folders, separated by spaces; default
# data/parquet/eval, made with data/prepare_eval.py from EVAL_SOURCE or the hub if it is not there), BENCHMARKS and TEMPLATE
# (what to make), OUT (default outputs/eval/<model>), GPUS (default: all visible) and TP (GPUs for one copy, 1).
# Further arguments go to `exgrpo evaluate`, see its --help; --dry-run shows counts and cost. Re-run the same command to resume.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' && exit 0 ;; esac
cd "$(dirname "$0")/.."

# shellcheck source=scripts/environment.sh
source scripts/environment.sh
choose_python "$(compgen -G '/dev/nvidia[0-9]*' >/dev/null && echo cuda || echo cpu)"
if [ -z "${MODEL:-}" ]; then
  echo "evaluate.sh: name a model, MODEL=<HF folder, hub id or global_step_N> bash scripts/evaluate.sh" >&2
  exit 2
fi
DATA=${DATA:-data/parquet/eval}
BENCHMARKS=${BENCHMARKS:-aime24,aime25,amc23,math500,minerva,olympiadbench,arc_c,gpqa_diamond,mmlu_pro}
TEMPLATE=${TEMPLATE:-thought}
OUT=${OUT:-outputs/eval/$(basename "$(dirname "$MODEL")")-$(basename "$MODEL")}
TP=${TP:-1}
# Start-up is imports: without .pyc files it takes more than twice as long.
unset PYTHONDONTWRITEBYTECODE

read -ra data <<<"$DATA"
if [ "$DATA" = data/parquet/eval ] && ! compgen -G "$DATA/*.parquet" >/dev/null; then
  "$PYTHON" data/prepare_eval.py --benchmarks "$BENCHMARKS" --template "$TEMPLATE" --out "$DATA" \
    ${EVAL_SOURCE:+--source "$EVAL_SOURCE"}
fi

parallel=(--tensor-parallel "$TP")
[ -z "${GPUS:-}" ] || parallel+=(--data-parallel "$((GPUS / TP))")
exec "$PYTHON" -m recipe.exgrpo.cli.evaluate --model "$MODEL" --data "${data[@]}" --out "$OUT" "${parallel[@]}" "$@"
