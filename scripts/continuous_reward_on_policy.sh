#!/usr/bin/env bash
# The matched on-policy baseline of continuous rewards (section 5.3): Qwen2.5-7B on WildChat-IF,
# scored by Skywork-Reward-Llama-3.1-8B-v0.2 (published 20.0).
# 4 GPUs train, 4 serve the reward model (REWARD_MODEL: folder or hub id). Cost: not published.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

tiny=() # a rule in place of the reward model: no 8B model fits there
[ -n "${TINY:-}" ] && tiny=(reward.custom_reward_function.path=scripts/tiny_reward.py)
HARDWARE=${HARDWARE:-gpu_4}
launch backbone=qwen2.5-7b method=continuous_on_policy "${tiny[@]}" -- "$@"
