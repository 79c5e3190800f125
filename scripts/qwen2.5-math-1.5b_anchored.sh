#!/usr/bin/env bash
# Rollout-level replay by advantage (arXiv 2606.04560) on Qwen2.5-Math-1.5B, in the rows of zero-variance groups.
# Cost: not measured on GPUs; rollouts and updated sequences are those of the on-policy baseline, no scoring pass.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch backbone=qwen2.5-math-1.5b method=anchored -- "$@"
