#!/usr/bin/env bash
# Asks an advisory database, OSV, about every pinned version. Called by `make audit`; pip-audit is fetched for it alone.
# Ends with 1 if something is known, into build/audit-*.json, and with 75 if the database does not answer.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
. infra/indexes.sh
database=${OSV_URL:-https://api.osv.dev/v1/query}
mkdir -p build
rm -f build/audit-*.json
for stack in cpu gpu; do
    lists=(--requirement "requirements/$stack.txt")
    [ "$stack" = gpu ] || lists+=(--requirement requirements/server.txt)
    # It ends with 1 both if it finds something and if it fails; only the former writes a report.
    said=$(.venv/bin/uv tool run --quiet --python "$python" pip-audit==2.10.1 "${lists[@]}" --no-deps --disable-pip \
        --vulnerability-service osv --osv-url "$database" --progress-spinner off --aliases on --desc off \
        --format json --output "build/audit-$stack.json" 2>&1) || true
    [ -f "build/audit-$stack.json" ] || {
        echo "Nothing was audited against the advisory database at $database: ${said##*$'\n'}" >&2
        exit 75
    }
done
"$python" - build/audit-*.json <<'PY'
import json, sys
audited = {(one["name"], one["version"]): one["vulns"] for path in sys.argv[1:] for one in json.load(open(path))["dependencies"]}
for (name, version), known in sorted(audited.items()):
    for one in known:
        print(f"{name} {version}: {', '.join([one['id'], *one['aliases']])}, mended in {', '.join(one['fix_versions']) or 'no version'}")
print(f"{len(audited)} pinned versions, of which advisories name {sum(map(bool, audited.values()))}.")
sys.exit(any(audited.values()))
PY
