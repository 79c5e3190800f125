#!/usr/bin/env bash
# Headroom-Drift Replay (arXiv 2609.03941) on Qwen2.5-Math-1.5B, in the rows of zero-variance groups.
# Cost: not measured on GPUs; that of the on-policy baseline, and one forward pass over each stored group that is looked at.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch backbone=qwen2.5-math-1.5b method=headroom -- "$@"
