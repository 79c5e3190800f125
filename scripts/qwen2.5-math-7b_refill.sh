#!/usr/bin/env bash
# Zero-variance refill on Qwen2.5-Math-7B (16k-think), ahead in the first study (docs/evidence.md): ours, not published.
# Cost: not measured on GPUs; rollouts and updated sequences are those of the on-policy baseline (30 hours on 8 H100), no scoring pass.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch backbone=qwen2.5-math-7b method=refill -- "$@"
