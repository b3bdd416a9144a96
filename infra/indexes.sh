# Where uv finds packages; sourced by setup.sh, lock.sh and audit.sh, which set $python.
# uv installs several times faster than pip but does not read pip's configuration: pass on what is set there.
pip_setting() { local set_here; set_here=$(printenv "PIP_$1" || true); echo "${set_here:-$("$python" -m pip config get "global.$2" 2>/dev/null || true)}"; }
export UV_FIND_LINKS=${UV_FIND_LINKS:-$(pip_setting FIND_LINKS find-links | tr ' ' ',')}
export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$(pip_setting INDEX_URL index-url)}
export UV_INDEX=${UV_INDEX:-${TORCH_INDEX:-}} UV_INDEX_STRATEGY=unsafe-best-match UV_LINK_MODE=${UV_LINK_MODE:-copy}
for name in UV_FIND_LINKS UV_DEFAULT_INDEX UV_INDEX; do [ -n "${!name}" ] || unset "$name"; done
