#!/usr/bin/env bash
# Make .venv with the pinned CPU environment and this package in it (`make setup`). Does nothing if .venv is up to date.
# PYTHON picks the interpreter (3.11), VENV the folder, PIP_EXTRA_INDEX_URL a second package index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=setup version=3.11 venv=${VENV:-.venv}
cpu_index=https://download.pytorch.org/whl/cpu
# shellcheck source=scripts/setup_common.sh
source scripts/setup_common.sh

wanted=$(key "" requirements-cpu.lock "scripts/${BASH_SOURCE[0]##*/}")
exit_if_up_to_date
make_environment
echo "setup: installing $(grep -c '^[a-z].*==' requirements-cpu.lock) pinned packages into $venv (3 GB, a few minutes)"
"$venv/bin/python" -m pip install --disable-pip-version-check --no-deps -r requirements-cpu.lock ||
    fail "pip failed. If it found no torch for the CPU: PIP_EXTRA_INDEX_URL=$cpu_index make setup"
if ! "$venv/bin/python" -c 'import torch, sys; sys.exit(torch.version.cuda is not None)'; then
    "$venv/bin/python" -m pip uninstall --quiet --yes torch
    fail "the index gave torch's CUDA build. Use PyTorch's CPU index: PIP_EXTRA_INDEX_URL=$cpu_index make setup"
fi
install_this_package
printf '%s\n' "$wanted" >"$stamp"
