#!/usr/bin/env bash
# The matched on-policy baseline of qwen3-4b_tool_exgrpo.sh.
# Cost: not measured; no GPU run has been made.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
# shellcheck source=scripts/gsm8k_tool.sh
source "$(dirname "${BASH_SOURCE[0]}")/gsm8k_tool.sh"

launch backbone=qwen3-4b_tool method=on_policy "${SIZES[@]}" -- "$@"
