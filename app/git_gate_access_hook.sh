#!/bin/sh
# git daemon runs this before it serves a connection, and git_http_backend.py before it advertises refs:
#     git_gate_access_hook.sh SERVICE MIRROR ...
# Brings the mirror up to date with upstream. Where upstream cannot be asked, what the mirror holds is served.
# Exit 1 refuses the connection; the first line on stdout is what the client is told.
set -eu
if [ -e /proc/self/fd/7 ]; then exec 2>&7; fi # git daemon throws a hook's stderr away: 7 is its own
: "${GIT_GATE_APP:=/app}"
# shellcheck source=/dev/null
. "$GIT_GATE_APP/git_gate_env.sh"
service=$1
mirror=$2
name=$(basename "$mirror" .git)

serve_as_it_is() {
    echo "cannot bring mirror $name up to date: $1; serving what it holds" >&2
    exit 0
}

# git daemon's children ignore TERM, and would hand that down to commands that must be stoppable.
within_time() {
    env --default-signal=TERM timeout --foreground --kill-after=2 "$GIT_GATE_SYNC_SECONDS" "$@"
}

cd "$mirror"
upstream=$(git config gate.upstream) || {
    echo "cannot serve $name: it has no upstream"
    exit 1
}

# A push holds this lock from upstream's yes until the mirror's ref has moved: a fetch in between would collide.
exec 9>>gate.lock
flock -w "$GIT_GATE_SYNC_SECONDS" 9 || serve_as_it_is "a push is underway"

said=$(within_time git fetch --quiet --prune --no-tags --no-write-fetch-head --no-recurse-submodules \
    "$upstream" '+refs/heads/*:refs/heads/*' '+refs/tags/*:refs/tags/*' 2>&1 </dev/null) || {
    code=$?
    case $code in 124 | 137) said="upstream timed out after $GIT_GATE_SYNC_SECONDS s" ;; esac
    reason=$(printf '%s\n' "$said" | grep -m 1 -i -E 'failed|denied|refused|timed out|resolve|fatal|error') || :
    serve_as_it_is "${reason:-git fetch ended with code $code}"
}

if [ "$service" = start ] || ! git rev-parse --quiet --verify HEAD >/dev/null; then
    head=$(within_time git ls-remote --symref "$upstream" HEAD 2>/dev/null </dev/null |
        sed -n 's,^ref: \(refs/heads/.*\)\tHEAD$,\1,p')
    [ -z "$head" ] || git symbolic-ref HEAD "$head"
fi
