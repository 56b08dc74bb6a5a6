#!/usr/bin/env bash
# On a machine with a CUDA device: the benchmarks, one after the other; then what is not timed, side by side: the tests that need a GPU, each
# kernel against fp64, and 500 steps beside those of plain PyTorch; then the kernels under compute-sanitizer where CUDA's toolkit is installed.
# Tables go into the folder given, scripts/bench/results unless told otherwise. PYTHON names the interpreter: .venv's, or one with a CUDA
# build of torch. About 30 minutes; BENCHMARKS=0, CHECKS=0 and SANITIZER=0 leave out one of the three.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-scripts/bench/results}
python=${PYTHON:-.venv/bin/python}
export PYTHONPATH=.
mkdir -p "$out"
devices=$("$python" -c 'import torch; print(torch.cuda.device_count())') && [ "$devices" -gt 0 ] || { echo "no CUDA device here, for the torch of $python"; exit 1; }
IFS=, read -ra cards <<< "${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((devices - 1)))}"
failed=0

if [ "${BENCHMARKS:-1}" = 1 ]; then
    "$python" scripts/bench/wkv7_gpu.py | tee "$out/wkv7-gpu.txt" || failed=1
    "$python" scripts/bench/model_gpu.py --write "$out/model-gpu.md" || failed=1
    "$python" scripts/bench/plan_gpu.py --write "$out/plan-gpu.md" || failed=1
    "$python" scripts/bench/bptt.py --lengths 64k,1M,16M --write "$out/bptt-gpu.md" || failed=1
    [ "$devices" -lt 2 ] || "$python" scripts/bench/strategies_gpu.py --write "$out/strategies-gpu.md" || failed=1
    "$python" scripts/bench/wkv456_gpu.py --write "$out/wkv456-gpu.md" || failed=1
fi

export OMP_NUM_THREADS=2  # of each of those side by side
running=()
side_by_side() { "$@" & running+=($!); }
all_done() { for job in "${running[@]}"; do wait "$job" || failed=1; done; running=(); }
tests() { "$python" -m pytest -m gpu -rs -n 6 2>&1 | tee "$out/tests-gpu.txt"; }
check() { "$python" -m rwkv.kernels check > "$out/kernels-gpu.txt"; }
loss() {
    local plain="model.kernel={wkv7:reference,norm_mix:torch,wkv7_inputs:torch,wkv7_readout:torch,relu_squared:torch,cross_entropy_:torch}"
    "$python" scripts/loss_compare.py model.kernel=cuda model.kernel=reference "$plain" --seeds 2 --write "$out/loss-gpu.md" -- \
        trainer.tokens=512k model.n_layer=2 precision=bf16
}
sanitized() {  # without torch's cache each tensor is an allocation of its own, and what is read beyond it is seen
    local tool=$1 found code; shift
    found=$(PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m rwkv.kernels check "$@" 2>&1)
    code=$?
    echo "$tool $*: $(tail -1 <<< "$found" | tr -d =); runs in: $(awk '/ ok /{print $1, $2, $3}' <<< "$found" | tr '\n' ',')" >> "$out/sanitizer-gpu.txt"
    [ $code = 0 ] || { echo "$found" | tail -40; return 1; }
}

if [ "${CHECKS:-1}" = 1 ]; then
    side_by_side tests
    side_by_side check
    side_by_side loss
    all_done
fi

if [ "${SANITIZER:-1}" = 1 ] && command -v compute-sanitizer > /dev/null; then
    rm -f "$out/sanitizer-gpu.txt"
    job=0
    for tool in memcheck racecheck; do
        for ops in "triton wkv4" "triton wkv5" "triton wkv6" "triton wkv7" "cuda wkv7" "triton norm_mix wkv7_inputs wkv7_readout relu_squared cross_entropy_"; do
            CUDA_VISIBLE_DEVICES=${cards[job++ % devices]} side_by_side sanitized $tool kernel=$ops
        done
    done
    all_done
fi
exit $failed
