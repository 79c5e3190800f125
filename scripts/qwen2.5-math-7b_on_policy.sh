#!/usr/bin/env bash
# The matched on-policy baseline (Dr.GRPO) on Qwen2.5-Math-7B (16k-think): 700 steps of 128 questions, 8 rollouts each.
# Cost as published: 155.4 s a step, 30 hours on 8 H100.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch backbone=qwen2.5-math-7b method=on_policy -- "$@"
