# shellcheck shell=bash
# What runs on GSM8K with a calculator share: the data; and for TINY=1 the embedded tool task, whose model calls a tool.
# Sourced after launch.sh.

# shellcheck source=scripts/start/gsm8k.sh
source "$(dirname "${BASH_SOURCE[0]}")/start/gsm8k.sh"
# shellcheck source=scripts/tool_task.sh
source "$(dirname "${BASH_SOURCE[0]}")/tool_task.sh"

# shellcheck disable=SC2034 # read by gsm8k.sh
TEMPLATE=calculator
SIZES=()
# shellcheck disable=SC2034 # used by the scripts that source it
[ -z "${TINY:-}" ] || SIZES=("${TOOL_TASK[@]}" data.train_files=outputs/tool_data/train.parquet
  data.val_files=outputs/tool_data/heldout.parquet actor_rollout_ref.model.path=data/tool/model)

# shellcheck disable=SC2329 # launch.sh calls it
prepare() {
  if [ -n "${TINY:-}" ]; then make_tool_data outputs/tool_data; else make_gsm8k; fi
}
