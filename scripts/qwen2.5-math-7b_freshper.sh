#!/usr/bin/env bash
# Freshness-aware priorities (arXiv 2604.16918) on Qwen2.5-Math-7B, in the rows of zero-variance groups.
# Cost: not measured on GPUs; rollouts and updated sequences are those of the on-policy baseline, no scoring pass.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch backbone=qwen2.5-math-7b method=freshper -- "$@"
