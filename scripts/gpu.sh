#!/usr/bin/env bash
# On a machine with a CUDA device: the tests that need one, then the benchmarks. Tables go into the folder given,
# scripts/bench/results unless told otherwise. PYTHON names the interpreter: .venv's, or one with a CUDA build of torch.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-scripts/bench/results}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"
failed=0
"$python" scripts/bench/bptt.py --lengths 64k,1M,16M --write "$out/bptt-gpu.md" || failed=1
"$python" scripts/bench/model_gpu.py --write "$out/model-gpu.md" || failed=1
"$python" scripts/bench/plan_gpu.py --write "$out/plan-gpu.md" || failed=1
"$python" scripts/loss_compare.py model.kernel=reference model.kernel=triton --seeds 2 --write "$out/loss-gpu.md" -- \
    trainer.tokens=512k model.n_layer=2 precision=bf16 || failed=1
[ "$("$python" -c 'import torch; print(torch.cuda.device_count())')" -lt 2 ] || "$python" scripts/bench/strategies_gpu.py --write "$out/strategies-gpu.md" || failed=1
PYTHONPATH=. "$python" scripts/bench/wkv7_gpu.py | tee "$out/wkv7-gpu.txt" || failed=1
PYTHONPATH=. "$python" scripts/bench/wkv456_gpu.py --write "$out/wkv456-gpu.md" || failed=1
"$python" -m rwkv.kernels check | tee "$out/kernels-gpu.txt" || failed=1
"$python" -m pytest -m gpu -rs 2>&1 | tee "$out/tests-gpu.txt" || failed=1
exit $failed
