#!/usr/bin/env bash
# Make .venv-gpu with the pinned GPU environment and this package in it (`make setup-gpu`): Linux x86_64, Python 3.12, 10 GB, about
# ten minutes. Does nothing if it is up to date. It installs without a GPU too, and says what a run would miss.
# PYTHON picks the interpreter (3.12), VENV the folder, FLASH_ATTN what to install as flash-attn: `none` (default), `build` (an
# hour; nvcc 13 must be there), or a wheel's path or address, such as one of verl's wheelhouse (docs/gpu.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=setup-gpu version=3.12 venv=${VENV:-.venv-gpu}
# shellcheck source=scripts/setup_common.sh
source scripts/setup_common.sh

flash_attention() {
    case ${FLASH_ATTN:-none} in
        none) echo "setup-gpu: without flash-attn (FLASH_ATTN=build, or a wheel; docs/gpu.md says what going without costs)" ;;
        build) "$venv/bin/python" -m pip install --no-build-isolation flash-attn==2.8.3 ;;
        *) "$venv/bin/python" -m pip install --no-deps "$FLASH_ATTN" ;;
    esac
}

wanted=$(key "${FLASH_ATTN:-none}" requirements-gpu.lock "scripts/${BASH_SOURCE[0]##*/}")
exit_if_up_to_date
[[ $(uname -sm) == "Linux x86_64" ]] || fail "the lock is for Linux x86_64, this is $(uname -sm)"
make_environment
echo "setup-gpu: installing $(grep -c '^[a-z].*==' requirements-gpu.lock) pinned packages into $venv (10 GB)"
"$venv/bin/python" -m pip install --disable-pip-version-check --no-deps -r requirements-gpu.lock || fail "pip failed"
flash_attention
install_this_package
[[ -r /proc/driver/nvidia/version ]] || echo "setup-gpu: no NVIDIA driver on this machine; where the run trains it must be 580 or newer" >&2
printf '%s\n' "$wanted" >"$stamp"
