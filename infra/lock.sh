#!/usr/bin/env bash
# Writes requirements/{cpu,gpu}.txt from pyproject.toml. Called by `make lock`.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=.venv/bin/uv
common=(pip compile pyproject.toml --extra team --extra dev --no-header --no-annotate --quiet --upgrade)
"$uv" "${common[@]}" --extra cpu --excludes requirements/cpu-excludes.txt --python-version 3.11 -o requirements/cpu.txt
"$uv" "${common[@]}" --extra gpu --python-version 3.12 -o requirements/gpu.txt
# A local build of torch satisfies the plain version; its suffix would bind the list to one machine's wheels.
sed -i 's/^\(torch==[0-9.]*\)+.*/\1/' requirements/cpu.txt
# What only servers and cluster workers need, beside the CPU list.
"$uv" pip compile requirements/server.in --constraint requirements/cpu.txt --no-header --no-annotate --quiet --upgrade \
    --python-version 3.11 | grep -vxFf requirements/cpu.txt > requirements/server.txt
