#!/usr/bin/env bash
# Make .venv-gpu with the pinned GPU environment and this package in it (`make setup-gpu`): Linux x86_64, Python 3.12, 10 GB, about
# ten minutes. Does nothing if it is up to date. It installs without a GPU too, and says what a run would miss.
# PYTHON picks the interpreter (3.12), VENV the folder, FLASH_ATTN what to install as flash-attn: `none` (default), `build` (an
# hour; nvcc 13 must be there), or a wheel's path or address, such as one of verl's wheelhouse (docs/gpu.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${VENV:-.venv-gpu}
stamp=$venv/.exgrpo-setup
unset PYTHONDONTWRITEBYTECODE

fail() {
    printf 'setup-gpu: %s\n' "$*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.12 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "needs Python 3.12 (found: $(${PYTHON:-python3} --version 2>&1 | head -n 1)). The lock is for 3.12;" \
        "install it, or name it: make setup-gpu PYTHON=/path/to/python3.12"
}

key() {
    { pwd && echo "${FLASH_ATTN:-none}" && cat requirements-gpu.lock setup.py "${BASH_SOURCE[0]}"; } | sha256sum | cut -d' ' -f1
}

flash_attention() {
    case ${FLASH_ATTN:-none} in
        none) echo "setup-gpu: without flash-attn (FLASH_ATTN=build, or a wheel; docs/gpu.md says what going without costs)" ;;
        build) "$venv/bin/python" -m pip install --no-build-isolation flash-attn==2.8.3 ;;
        *) "$venv/bin/python" -m pip install --no-deps "$FLASH_ATTN" ;;
    esac
}

wanted=$(key)
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    echo "setup-gpu: $venv is up to date"
    exit 0
fi

[[ $(uname -sm) == "Linux x86_64" ]] || fail "the lock is for Linux x86_64, this is $(uname -sm)"
python=$(find_python)
[[ -x $venv/bin/python ]] || "$python" -m venv "$venv" || fail "could not make $venv; on Debian and Ubuntu: apt-get install python3.12-venv"
echo "setup-gpu: installing $(grep -c '^[a-z].*==' requirements-gpu.lock) pinned packages into $venv (10 GB)"
"$venv/bin/python" -m pip install --disable-pip-version-check --no-deps -r requirements-gpu.lock || fail "pip failed"
flash_attention
# Compat mode, as in setup_cpu.sh: an editable finder would lose the name `recipe` to TransferQueue's wheel.
"$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation \
    --config-settings editable_mode=compat -e .
"$venv/bin/python" - "$PWD" <<'PY'
import os, sys
os.chdir("/")
import recipe.exgrpo, torch
assert recipe.exgrpo.__file__.startswith(sys.argv[1] + "/"), f"recipe is imported from {recipe.exgrpo.__file__}"
print(f"setup-gpu: Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.version.cuda}, GPUs {torch.cuda.device_count()}")
PY
[[ -r /proc/driver/nvidia/version ]] || echo "setup-gpu: no NVIDIA driver on this machine; where the run trains it must be 580 or newer" >&2
printf '%s\n' "$wanted" >"$stamp"
