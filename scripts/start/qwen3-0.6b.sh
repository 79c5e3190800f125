#!/usr/bin/env bash
# Qwen3-0.6B (without thinking) on GSM8K, one GPU: 174 steps of 128 questions, 8 rollouts each. No experiment of the paper.
#
#   METHOD=exgrpo|on_policy|refill bash scripts/start/qwen3-0.6b.sh
#
# HARDWARE: gpu_1x24, gpu_1x48, gpu_1x80, each also with _lora.
# Cost: not measured; no GPU run has been made.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
# shellcheck source=scripts/start/gsm8k.sh
source "$(dirname "${BASH_SOURCE[0]}")/gsm8k.sh"

HARDWARE=${HARDWARE:-gpu_1x24}
VARIANT=${METHOD:-exgrpo}
launch backbone=qwen3-0.6b "method=$VARIANT" -- "$@"
