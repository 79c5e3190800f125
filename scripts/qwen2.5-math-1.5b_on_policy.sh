#!/usr/bin/env bash
# The matched on-policy baseline (Dr.GRPO) on Qwen2.5-Math-1.5B: 500 steps of 128 questions, 8 rollouts each.
# Cost as published: 185.0 s a step, 26 hours on 8 H100.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch backbone=qwen2.5-math-1.5b method=on_policy -- "$@"
