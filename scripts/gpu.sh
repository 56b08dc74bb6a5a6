#!/usr/bin/env bash
# On a machine with a CUDA device: the tests that need one, then the benchmarks. Tables go into the folder given,
# scripts/bench/results unless told otherwise. PYTHON names the interpreter: .venv's, or one with a CUDA build of torch.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-scripts/bench/results}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"
failed=0
"$python" -m pytest -m gpu -rs || failed=1
"$python" scripts/bench/wkv7_gpu.py --write "$out/wkv7-gpu.json" || failed=1
"$python" scripts/bench/bptt.py --write "$out/bptt-gpu.md" ${LENGTHS:+--lengths "$LENGTHS"} || failed=1
exit $failed
