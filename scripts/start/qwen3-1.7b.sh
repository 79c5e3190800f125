#!/usr/bin/env bash
# Qwen3-1.7B (without thinking) on GSM8K, one GPU: 174 steps of 128 questions, 8 rollouts each. No experiment of the paper.
#
#   METHOD=exgrpo|on_policy|refill bash scripts/start/qwen3-1.7b.sh
#
# HARDWARE: gpu_1x48, gpu_1x80; with LoRA gpu_1x24_lora, gpu_1x48_lora, gpu_1x80_lora.
# Cost: not measured; no GPU run has been made.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
# shellcheck source=scripts/start/gsm8k.sh
source "$(dirname "${BASH_SOURCE[0]}")/gsm8k.sh"

HARDWARE=${HARDWARE:-gpu_1x48}
VARIANT=${METHOD:-exgrpo}
launch backbone=qwen3-1.7b "method=$VARIANT" -- "$@"
