#!/usr/bin/env bash
# The demonstration behind `make demo`: about 60 steps of ExGRPO on CPU, a table, curves, and a page to look at in outputs/demo. Options: --help.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" scripts/demo.py "$@"
