#!/usr/bin/env bash
# LUFFY (arXiv 2504.14945) on Qwen2.5-Math-7B: one expert trace in the group of its question, shaped, the rest on-policy.
#
#   TRACES=FILE bash scripts/qwen2.5-math-7b_luffy.sh   # traces, or a state (docs/experience.md); default: those of prepare_train.py --traces
#
# Cost: not measured on GPUs; an eighth fewer rollouts than the on-policy run, as many sequences updated.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

TRACES=${TRACES:-${TINY:+outputs/toy_data/traces.jsonl}}
launch backbone=qwen2.5-math-7b method=luffy ${TRACES:+"exgrpo.experience.init_from=[$(_text "$TRACES")]"} -- "$@"
