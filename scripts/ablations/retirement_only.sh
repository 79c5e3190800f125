#!/usr/bin/env bash
# Ablation of ExGRPO on Qwen2.5-Math-7B, 700 steps (published average of ExGRPO itself: 48.3).
# A control nobody published: the buffer collects and retires, nothing is ever drawn from it.
# Cost: about the full run's 36 hours on 8 H100.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

launch backbone=qwen2.5-math-7b ablation=retirement_only -- "$@"
