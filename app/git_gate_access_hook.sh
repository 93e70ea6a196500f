#!/bin/sh
# Run before a client is served:
#     git_gate_access_hook.sh SERVICE MIRROR ...
# Brings the mirror up to date with upstream (git_gate_mirror.py). Exit 1 refuses the client; the first line on stdout
# is what it is told.
set -eu
: "${GIT_GATE_APP:=/app}"
# shellcheck source=/dev/null
. "$GIT_GATE_APP/git_gate_env.sh"
exec python3 -I "$GIT_GATE_APP/git_gate_mirror.py" "$@"
