#!/usr/bin/env bash
# Writes requirements/*.txt and the table of requirements/README.md from pyproject.toml. Called by `make lock`: what is
# pinned stays, what is missing comes in, what nobody needs goes; with UPGRADE=1 all become the newest that fit.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
. infra/indexes.sh
keep() { [ -n "${UPGRADE:-}" ] || echo "--constraint=$1"; }
pin() { .venv/bin/uv pip compile --python-version 3.11 --no-header --no-annotate --quiet ${UPGRADE:+--upgrade} "$@"; }
cpu=(--excludes requirements/cpu-excludes.txt)

# uv leaves a list that is there as it is, as far as it still fits.
pin pyproject.toml --extra team --extra dev --extra docs --extra cpu "${cpu[@]}" --output-file requirements/cpu.txt || {
    echo "If no torch+cpu was found, name PyTorch's CPU index: make lock TORCH_INDEX=<the CPU index named on pytorch.org>" >&2
    exit 1
}
pin pyproject.toml --extra team --extra dev --extra docs --extra gpu --output-file requirements/gpu.txt
# A local build of torch satisfies the plain version; its suffix would bind the list to one machine's wheels.
sed -i 's/^\(torch==[0-9.]*\)+.*/\1/' requirements/*.txt
# Beside the CPU list: what only servers and cluster workers need.
server=$(pin requirements/server.in --constraint requirements/cpu.txt $(keep requirements/server.txt) | grep -vxFf requirements/cpu.txt)
echo "$server" > requirements/server.txt
"$python" -c 'from infra.pins import write_versions; write_versions()'
