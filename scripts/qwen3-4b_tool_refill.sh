#!/usr/bin/env bash
# Zero-variance refill on Qwen3-4B with a calculator (GSM8K): qwen3-4b_tool_exgrpo.sh with another method.
# Cost: not measured; no GPU run has been made.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
# shellcheck source=scripts/gsm8k_tool.sh
source "$(dirname "${BASH_SOURCE[0]}")/gsm8k_tool.sh"

launch backbone=qwen3-4b_tool method=refill "${SIZES[@]}" -- "$@"
