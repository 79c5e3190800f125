#!/usr/bin/env bash
# ExGRPO's later settings (SU-01, arXiv 2605.13301) on Qwen2.5-Math-7B: a quarter of the batch, lone successes, early retirement.
# Cost: not measured on GPUs; at most that of the ExGRPO run, half as many questions being scored and replayed.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch backbone=qwen2.5-math-7b method=su01 -- "$@"
