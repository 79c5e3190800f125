# shellcheck shell=bash
# What the scripts in this folder share: GSM8K as parquet, made where missing, from GSM8K (a folder with train.jsonl and test.jsonl:
# ../shared/data/gsm8k) or else the hub. Sourced after launch.sh, which calls `prepare` right before a run.

GSM8K=${GSM8K:-../shared/data/gsm8k}

# shellcheck disable=SC2329 # launch.sh calls it
prepare() {
  local split from
  if [ -n "${TINY:-}" ]; then
    [ -f outputs/toy_data/traces.jsonl ] || "$PYTHON" data/make_toy.py data --out outputs/toy_data
    return
  fi
  for split in train test; do
    from=(--split "$split")
    [ -f "$GSM8K/$split.jsonl" ] && from=(--source "$GSM8K/$split.jsonl")
    [ -f "data/parquet/gsm8k_${split}_boxed.parquet" ] || "$PYTHON" data/prepare_train.py --dataset gsm8k "${from[@]}" \
      --template qwen_boxed --out "data/parquet/gsm8k_${split}_boxed.parquet"
  done
}
