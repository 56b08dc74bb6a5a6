#!/usr/bin/env bash
# Sets up and runs the tests, two at a time; further arguments go to pytest: -m "not slow" for the everyday part, -n 0 for one at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
