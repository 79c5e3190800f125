# shellcheck shell=bash
# What scripts on GSM8K share: it as parquet, made where missing, from GSM8K (a folder with train.jsonl and test.jsonl:
# ../shared/data/gsm8k) or else the hub. Sourced after launch.sh, which calls `prepare` right before a run.

GSM8K=${GSM8K:-../shared/data/gsm8k}
TEMPLATE=boxed # of data/templates/qwen_*.yaml, and of the files' names

# shellcheck disable=SC2329 # launch.sh calls it
prepare() {
  if [ -n "${TINY:-}" ]; then
    [ -f outputs/toy_data/traces.jsonl ] || "$PYTHON" data/make_toy.py data --out outputs/toy_data
  else
    make_gsm8k
  fi
}

make_gsm8k() {
  local split from
  for split in train test; do
    from=(--split "$split")
    [ -f "$GSM8K/$split.jsonl" ] && from=(--source "$GSM8K/$split.jsonl")
    [ -f "data/parquet/gsm8k_${split}_$TEMPLATE.parquet" ] || "$PYTHON" data/prepare_train.py --dataset gsm8k "${from[@]}" \
      --template "qwen_$TEMPLATE" --out "data/parquet/gsm8k_${split}_$TEMPLATE.parquet"
  done
}
