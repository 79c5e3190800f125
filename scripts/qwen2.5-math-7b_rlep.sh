#!/usr/bin/env bash
# RLEP (arXiv 2507.07451) on Qwen2.5-Math-7B: two verified successes of an earlier run in every group, beside eight fresh rollouts.
#
#   TRACES=STATE bash scripts/qwen2.5-math-7b_rlep.sh   # a run's global_step_N, or what `exgrpo experience import` wrote
#
# Cost: not measured on GPUs; the rollouts of the on-policy run, a quarter more sequences updated.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

TRACES=${TRACES:-${TINY:+outputs/toy_data/traces.jsonl}}
launch backbone=qwen2.5-math-7b method=rlep ${TRACES:+"exgrpo.experience.init_from=[$(_text "$TRACES")]"} -- "$@"
