# shellcheck shell=bash
# Which environment a script uses: sourced by scripts that start Python, in the root of the repository.

# choose_python cpu|cuda: sets PYTHON, unless it is set, to the environment made for that (.venv by `make setup`, .venv-gpu by
# `make setup-gpu`), else to the `python` of PATH, which an image or a cluster has; and says which.
choose_python() {
  local folder=.venv
  [ "$1" = cpu ] || folder=.venv-gpu
  if [ -z "${PYTHON:-}" ]; then
    PYTHON=$folder/bin/python
    [ -x "$PYTHON" ] || PYTHON=python
  fi
  echo "environment for $1: $(command -v "$PYTHON" || echo "$PYTHON")" >&2
}

# device_of ARGUMENT...: what a run with these hydra overrides trains on; the last one that says so decides.
device_of() {
  local argument device=cuda
  for argument in "$@"; do
    case $argument in
      hardware=cpu | hardware=tiny | trainer.device=cpu) device=cpu ;;
      hardware=* | trainer.device=*) device=cuda ;;
    esac
  done
  echo "$device"
}

# use_ray_token: whoever joins a Ray cluster shows the token of this user (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token),
# where there is one. By itself Ray 2.60 does so for the head and for the address `auto` alone, and the others are then refused.
use_ray_token() {
  if [ -n "${RAY_AUTH_TOKEN:-}" ] || [ -s "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ]; then
    export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
  fi
}
