#!/usr/bin/env bash
# Writes build/sbom.json, all that is installed in .venv as CycloneDX, and build/licences.md, the licences of all that is
# pinned. Called by `make sbom`; its tools are fetched for it alone. The same environment gives the same files.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
. infra/indexes.sh
tool() { .venv/bin/uv tool run --quiet --python "$python" "$@"; }
mkdir -p build
tool --from cyclonedx-bom==7.5.0 cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
    --output-file build/sbom.json "$python"
# What is pinned for the other stack is not installed: pip reads what it says of itself.
others=$(mktemp -d)
trap 'rm -r "$others"' EXIT
"$python" -c 'from infra.licences import not_installed; print("\n".join(not_installed()))' > "$others/list.txt"
tool pip==26.3 install --dry-run --ignore-installed --no-deps --quiet --report "$others/report.json" \
    --requirement "$others/list.txt" 2> >(grep -v "is ignored: it is neither" >&2)
"$python" -c 'import sys; from infra.licences import write_licences; write_licences(*sys.argv[1:])' "$others/report.json" build/licences.md
