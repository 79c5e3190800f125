#!/usr/bin/env bash
# Make .venv with the pinned CPU environment and this package in it (`make setup`). Does nothing if .venv is up to date.
# PYTHON picks the interpreter (3.11), VENV the folder, PIP_EXTRA_INDEX_URL a second package index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${VENV:-.venv}
stamp=$venv/.exgrpo-setup
cpu_index=https://download.pytorch.org/whl/cpu
# pip compiles what it installs; this keeps later imports from compiling again in every process.
unset PYTHONDONTWRITEBYTECODE

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "needs Python 3.11 (found: $(${PYTHON:-python3} --version 2>&1 | head -n 1)). The lock is for 3.11;" \
        "install it, or name it: make setup PYTHON=/path/to/python3.11"
}

key() {
    # The environment's contents: what is installed, how, and into which folder (compat mode writes its path).
    { pwd && cat requirements-cpu.lock setup.py "${BASH_SOURCE[0]}"; } | sha256sum | cut -d' ' -f1
}

check() {
    "$venv/bin/python" - "$PWD" <<'PY'
import os, sys
os.chdir("/")
import recipe.exgrpo, verl_ext, torch
for package in (recipe, verl_ext):
    assert package.__file__.startswith(sys.argv[1] + "/"), f"{package.__name__} is imported from {package.__file__}"
print(f"setup: Python {sys.version.split()[0]}, torch {torch.__version__}, {sys.prefix}")
PY
}

wanted=$(key)
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    echo "setup: $venv is up to date"
    exit 0
fi

python=$(find_python)
[[ -x $venv/bin/python ]] || "$python" -m venv "$venv" ||
    fail "could not make $venv; on Debian and Ubuntu: apt-get install python3.11-venv"
echo "setup: installing $(grep -c '^[a-z].*==' requirements-cpu.lock) pinned packages into $venv (3 GB, a few minutes)"
"$venv/bin/python" -m pip install --disable-pip-version-check --no-deps -r requirements-cpu.lock ||
    fail "pip failed. If it found no torch for the CPU: PIP_EXTRA_INDEX_URL=$cpu_index make setup"
if ! "$venv/bin/python" -c 'import torch, sys; sys.exit(torch.version.cuda is not None)'; then
    "$venv/bin/python" -m pip uninstall --quiet --yes torch
    fail "the index gave torch's CUDA build. Use PyTorch's CPU index: PIP_EXTRA_INDEX_URL=$cpu_index make setup"
fi
# Compat mode puts the tree itself on sys.path: an editable finder would lose the name `recipe` to TransferQueue's wheel.
"$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation \
    --config-settings editable_mode=compat -e .
check
printf '%s\n' "$wanted" >"$stamp"
