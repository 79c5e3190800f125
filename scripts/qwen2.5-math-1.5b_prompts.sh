#!/usr/bin/env bash
# Prompt replay (arXiv 2603.21177) on Qwen2.5-Math-1.5B: questions of middling difficulty come back with fresh rollouts.
# Cost: about the on-policy run's; not measured on GPUs.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch backbone=qwen2.5-math-1.5b method=prompts -- "$@"
