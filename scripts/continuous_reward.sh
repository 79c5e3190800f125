#!/usr/bin/env bash
# ExGRPO with continuous rewards (section 5.3): Qwen2.5-7B on WildChat-IF,
# scored by Skywork-Reward-Llama-3.1-8B-v0.2 (published 21.7).
# 4 GPUs train, 4 serve the reward model (REWARD_MODEL: folder or hub id). Cost: not published.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

# With TINY=1 a rule replaces the reward model: no 8B model fits this machine.
rewards=()
[ -n "${TINY:-}" ] && rewards=(reward.custom_reward_function.path=scripts/tiny_reward.py)
[ -n "${REWARD_MODEL:-}" ] && rewards=("reward.reward_model.model_path=$REWARD_MODEL")
HARDWARE=${HARDWARE:-gpu_4}
launch backbone=qwen2.5-7b method=continuous "${rewards[@]}" -- "$@"
