# shellcheck shell=bash
# What runs of the embedded tool task share: its files and sizes, and the loop with its calculator. Sourced after launch.sh.

# shellcheck disable=SC2034 # used by the scripts that source it
TOOL_TASK=(
  data.max_prompt_length=40 data.max_response_length=72
  actor_rollout_ref.rollout.max_model_len=112
  actor_rollout_ref.rollout.agent.default_agent_loop=bounded_tool
  actor_rollout_ref.rollout.agent.agent_loop_config_path=verl_ext/agent_loops.yaml
  actor_rollout_ref.rollout.multi_turn.function_tool_path=data/toy_tool.py
  actor_rollout_ref.rollout.multi_turn.max_assistant_turns=4
)

# make_tool_data FOLDER: the questions as parquet, where they are missing.
make_tool_data() {
  [ -f "$1/heldout.parquet" ] || "$PYTHON" data/make_tool_task.py data --out "$1"
}
