#!/usr/bin/env bash
# Qwen3-4B base on OpenR1-Math, 8 GPUs with 80 GB: 500 steps of 128 questions, 8 rollouts each. No experiment of the paper.
#
#   METHOD=exgrpo|on_policy|refill bash scripts/start/qwen3-4b-base.sh
#
# Data: docs/reproduce.md, with --template qwen_boxed.
# Cost: not measured; no GPU run has been made.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

VARIANT=${METHOD:-exgrpo}
launch backbone=qwen3-4b-base "method=$VARIANT" -- "$@"
