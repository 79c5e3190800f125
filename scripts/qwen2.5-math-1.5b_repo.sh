#!/usr/bin/env bash
# RePO (arXiv 2506.09340) on Qwen2.5-Math-1.5B: the newest earlier rollouts of each question on top of the batch.
# Cost: not measured on GPUs; rollouts of the on-policy baseline, up to twice its updated sequences (the paper: 15 % more time).
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch backbone=qwen2.5-math-1.5b method=repo -- "$@"
