#!/usr/bin/env bash
# Rescue (AR3PO, arXiv 2509.25808; ARPO, 2505.16282) on Qwen2.5-Math-1.5B: a stored success for groups that failed altogether.
# Cost: not measured on GPUs; rollouts and updated sequences are those of the on-policy baseline, no scoring pass.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch backbone=qwen2.5-math-1.5b method=rescue -- "$@"
