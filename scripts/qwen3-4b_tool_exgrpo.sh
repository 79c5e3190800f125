#!/usr/bin/env bash
# ExGRPO with a tool: Qwen3-4B (without thinking) on GSM8K with a calculator, 8 GPUs with 80 GB. No experiment of the paper.
# Cost: not measured; no GPU run has been made.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
# shellcheck source=scripts/gsm8k_tool.sh
source "$(dirname "${BASH_SOURCE[0]}")/gsm8k_tool.sh"

launch backbone=qwen3-4b_tool method=exgrpo "${SIZES[@]}" -- "$@"
