# shellcheck shell=bash
# Arguments:
#   --help       this text          --dry-run    print the overrides, one per line, and stop
#   -v           with everything that verl, vLLM and their libraries say (as VERBOSE=1)
#   key=value    hydra overrides, after everything else: data.train_batch_size=64 exgrpo.rho=0.3
# Environment, before the command (relative paths start at the root of the repository, wherever you are):
#   RUN          run folder (outputs/<script>). Re-run the same command to resume from its newest checkpoint.
#   MODEL, TOKENIZER, TRAIN, VAL   model and tokenizer (folder or hub id), training and validation parquet
#   REWARD_MODEL   folder or hub id, where a model gives the reward
#   NNODES, GPUS   nodes and GPUs per node      HARDWARE   preset: gpu (8 x 80 GB), gpu_4, gpu_few (1 or 2), gpu_40gb
#   LOGGER       console (default), wandb, tensorboard or both; metrics.jsonl is always written
#   PYTHON       interpreter (default: .venv-gpu for GPUs, .venv for CPU, as the run needs; else python)
#   TINY=1       two steps of the same experiment with the toy model on CPU: a minute or two, 6 GB
# SIGTERM, Ctrl-C and SIGUSR1 let a run finish its step, save, and exit with code 75; a second one ends it at once.
# Before a run: `exgrpo check SCRIPT` (does it fit?) and `exgrpo config SCRIPT` (how does it differ from the paper?).

# Common launcher: scripts that start a run source it and call `launch PRESET-OR-OVERRIDE... -- "$@"`.

# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# The comment at the top of a file.
_header() {
  sed -n '/^#!/d; /^# shellcheck/d; /^#/!q; s/^# \{0,1\}//p' "$1"
}

_help() {
  _header "$0" && printf '\nUsage: [NAME=value ...] bash %s [argument ...]\n\n' "$0" && _header "${BASH_SOURCE[0]}"
}

_logger() {
  case ${LOGGER:-console} in
    console) echo "[console]" ;;
    wandb | tensorboard) echo "[console,$LOGGER]" ;;
    both) echo "[console,wandb,tensorboard]" ;;
    *) echo "LOGGER must be console, wandb, tensorboard or both; got '$LOGGER'" >&2 && return 2 ;;
  esac
}

# A text as hydra reads it whatever characters it has.
_text() {
  local quote="'"
  printf "'%s'" "${1//$quote/\\$quote}"
}

# A text, or a list ([a,b]) or null, which stay what they are.
_value() {
  case $1 in
    \[* | null) printf '%s' "$1" ;;
    *) _text "$1" ;;
  esac
}

# What a run needs and may be missing, made in the root of the repository right before it starts; a script may redefine it.
prepare() {
  [ -z "${TINY:-}" ] || [ -f outputs/toy_data/traces.jsonl ] || "$PYTHON" data/make_toy.py data --out outputs/toy_data
}

# launch PRESET-OR-OVERRIDE... -- ARGUMENT...
launch() {
  local presets=() given=() overrides=() argument name logger dry=""
  while [ "$1" != -- ]; do presets+=("$1") && shift; done
  shift
  for argument in "$@"; do
    case $argument in
      -h | --help) _help && exit 0 ;;
      --dry-run) dry=1 ;;
      -v | --verbose) export VERBOSE=1 ;;
      -*) echo "$0: unknown option $argument (--help)" >&2 && exit 2 ;;
      [A-Z]*=*) echo "$0: ${argument%%=*} goes before the command: $argument bash $0" >&2 && exit 2 ;;
      *) given+=("$argument") ;;
    esac
  done

  name=$(basename "$0" .sh)${VARIANT:+_$VARIANT}
  logger=$(_logger)
  [ -n "${TINY:-}" ] && HARDWARE=tiny && name=$name-tiny
  RUN=${RUN:-outputs/$name}
  overrides=("${presets[@]}" ${HARDWARE:+"hardware=$HARDWARE"})
  overrides+=(${MODEL:+"actor_rollout_ref.model.path=$(_value "$MODEL")"})
  overrides+=(${TOKENIZER:+"actor_rollout_ref.model.tokenizer_path=$(_value "$TOKENIZER")"})
  overrides+=(${REWARD_MODEL:+"reward.reward_model.model_path=$(_value "$REWARD_MODEL")"})
  overrides+=(${TRAIN:+"data.train_files=$(_value "$TRAIN")"} ${VAL:+"data.val_files=$(_value "$VAL")"})
  overrides+=(${NNODES:+"trainer.nnodes=$NNODES"} ${GPUS:+"trainer.n_gpus_per_node=$GPUS"})
  overrides+=("trainer.logger=$logger" "trainer.default_local_dir=$(_text "$RUN")")
  overrides+=("trainer.experiment_name=$(_text "$(basename "$RUN")")")
  overrides+=("${given[@]}")
  [ -n "$dry" ] && printf '%s\n' "${overrides[@]}" && exit 0

  cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
  choose_python "$(device_of "${overrides[@]}")"
  [ -z "${RAY_ADDRESS:-}" ] || use_ray_token
  export TENSORBOARD_DIR=${TENSORBOARD_DIR:-$RUN/tensorboard}
  # For a model this small, more threads only wait for each other.
  [ -z "${TINY:-}" ] || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  prepare
  exec "$PYTHON" -m recipe.exgrpo.main "${overrides[@]}"
}
