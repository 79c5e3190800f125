#!/usr/bin/env bash
# RL-ZVP (arXiv 2509.21880) on Qwen2.5-Math-7B: groups that all or none solved are trained on too, each token by its entropy.
# Cost: about the on-policy run's; not measured on GPUs.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch backbone=qwen2.5-math-7b method=rl_zvp -- "$@"
