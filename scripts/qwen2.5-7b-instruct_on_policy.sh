#!/usr/bin/env bash
# The matched on-policy baseline (Dr.GRPO) on Qwen2.5-7B-Instruct: 500 steps of 128 questions, 8 rollouts each.
# Cost: not published; the 7B run's 155 to 185 s a step on 8 H100 is the nearest figure.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch backbone=qwen2.5-7b-instruct method=on_policy -- "$@"
