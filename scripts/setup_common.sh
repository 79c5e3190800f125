# shellcheck shell=bash disable=SC2154 # set by the script that sources it
# What setup_cpu.sh and setup_gpu.sh share. Sourced from the root of the tree, with `name` (of the make target), `version` (of Python)
# and `venv` set.

stamp=$venv/.exgrpo-setup
# pip compiles what it installs; this keeps later imports from compiling again in every process.
unset PYTHONDONTWRITEBYTECODE

fail() {
    printf '%s: %s\n' "$name" "$*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python$version python3}; do
        if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "needs Python $version (found: $(${PYTHON:-python3} --version 2>&1 | head -n 1)). The lock is for $version;" \
        "install it, or name it: make $name PYTHON=/path/to/python$version"
}

# key WORD FILE...: the environment's contents: what is installed, how, and into which folder (compat mode writes its path).
key() {
    { pwd && echo "$1" && cat setup.py scripts/setup_common.sh "${@:2}"; } | sha256sum | cut -d' ' -f1
}

exit_if_up_to_date() {
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        echo "$name: $venv is up to date"
        exit 0
    fi
}

make_environment() {
    local python
    python=$(find_python)
    [[ -x $venv/bin/python ]] || "$python" -m venv "$venv" ||
        fail "could not make $venv; on Debian and Ubuntu: apt-get install python$version-venv"
}

# Compat mode puts the tree itself on sys.path: an editable finder would lose the name `recipe` to TransferQueue's wheel.
install_this_package() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation \
        --config-settings editable_mode=compat -e .
    "$venv/bin/python" - "$PWD" "$name" <<'PY'
import os, sys
os.chdir("/")
import recipe.exgrpo, verl_ext, torch
for package in (recipe, verl_ext):
    assert package.__file__.startswith(sys.argv[1] + "/"), f"{package.__name__} is imported from {package.__file__}"
cuda = f", CUDA {torch.version.cuda}, GPUs {torch.cuda.device_count()}" if torch.version.cuda else ""
print(f"{sys.argv[2]}: Python {sys.version.split()[0]}, torch {torch.__version__}{cuda}, {sys.prefix}")
PY
}
