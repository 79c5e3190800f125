#!/usr/bin/env bash
# GRPO (arXiv 2402.03300) on Qwen2.5-Math-1.5B: the on-policy baseline with advantages divided by their standard deviation.
# Cost: about the on-policy run's; not measured on GPUs.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch backbone=qwen2.5-math-1.5b method=grpo -- "$@"
