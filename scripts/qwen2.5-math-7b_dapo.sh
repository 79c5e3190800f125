#!/usr/bin/env bash
# DAPO (arXiv 2503.14476) without its overlong shaping on Qwen2.5-Math-7B (16k-think): groups without variance are sampled anew until 128 differ.
# Cost: not measured on GPUs; updates as the on-policy baseline, rollouts 1 / (share of groups that differ) of its, and surplus:
# compare runs at equal batch/generated_rollouts, not at equal steps.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch backbone=qwen2.5-math-7b method=dapo -- "$@"
