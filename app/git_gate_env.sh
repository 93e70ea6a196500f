# shellcheck shell=sh
# The one environment in which every git of the gate runs: upload-pack, receive-pack and their hooks.
# Sourced, with GIT_GATE_APP set. It ends the shell if the gate itself cannot run.

: "${GIT_GATE_ROOT:=/srv/git}"                           # the mirrors, NAME.git
: "${GIT_GATE_MIRRORS:=/etc/git-gate/mirrors}"           # the list: NAME URL
: "${GIT_GATE_SSH_KEY:=/etc/git-gate/ssh/id}"
: "${GIT_GATE_KNOWN_HOSTS:=/etc/git-gate/ssh/known_hosts}"
: "${GIT_GATE_GITLEAKS:=gitleaks}"
: "${GIT_GATE_GITLEAKS_CONFIG:=$GIT_GATE_APP/gitleaks.toml}"
: "${GIT_GATE_SYNC_SECONDS:=20}"                         # how long a client waits for upstream

# Limits of a push. What exceeds one is refused, and the pusher is told which.
: "${GIT_GATE_PUSH_MIB:=256}"                            # the pack, compressed
: "${GIT_GATE_OBJECT_MIB:=32}"                           # one file, directory, commit or tag, not compressed
: "${GIT_GATE_FILE_LINES:=1000000}"                      # lines of one file
: "${GIT_GATE_UNPACK_SECONDS:=300}"                      # CPU time of each process of git that unpacks
: "${GIT_GATE_SCAN_MIB:=1024}"                           # memory of each process of a scan; to unpack, 3/8 of it
: "${GIT_GATE_SCANS:=2}"                                 # scans at the same time, of all mirrors
: "${GIT_GATE_SCAN_SECONDS:=600}"                        # the wait for a place among these, and then the scan
: "${GIT_GATE_PUSH_SECONDS:=300}"                        # the wait for the mirror, a fetch from upstream, the push
export GIT_GATE_APP GIT_GATE_ROOT GIT_GATE_SSH_KEY GIT_GATE_KNOWN_HOSTS
export GIT_GATE_GITLEAKS GIT_GATE_GITLEAKS_CONFIG GIT_GATE_SYNC_SECONDS
export GIT_GATE_PUSH_MIB GIT_GATE_OBJECT_MIB GIT_GATE_FILE_LINES
export GIT_GATE_UNPACK_SECONDS GIT_GATE_SCAN_MIB GIT_GATE_SCANS GIT_GATE_SCAN_SECONDS GIT_GATE_PUSH_SECONDS

# git passes over a hook that is missing or not executable, and takes the push: without the hook, no service.
if ! [ -x "$GIT_GATE_APP/git_gate_hooks/pre-receive" ]; then
    echo "cannot execute $GIT_GATE_APP/git_gate_hooks/pre-receive: no push would be scanned, so nothing is served" >&2
    exit 1
fi

# Evaluated by sh when git connects, hence the quotes.
# shellcheck disable=SC2016,SC2089,SC2090
GIT_SSH_COMMAND='ssh -F /dev/null -i "$GIT_GATE_SSH_KEY" -o BatchMode=yes -o IdentitiesOnly=yes \
-o StrictHostKeyChecking=yes -o "UserKnownHostsFile=\"$GIT_GATE_KNOWN_HOSTS\"" -o GlobalKnownHostsFile=/dev/null \
-o ConnectTimeout=5 -o ServerAliveInterval=10'
GIT_SSH_VARIANT=ssh
GIT_TERMINAL_PROMPT=0
GIT_NO_REPLACE_OBJECTS=1
GIT_CONFIG_NOSYSTEM=1
GIT_CONFIG_GLOBAL=/dev/null
GIT_ATTR_NOSYSTEM=1
LC_ALL=C
# git unpacks a push before the gate sees it: a few bytes of a pack can demand any amount of memory.
GIT_ALLOC_LIMIT=$((GIT_GATE_SCAN_MIB / 4))m
# shellcheck disable=SC2090
export GIT_ALLOC_LIMIT GIT_SSH_COMMAND GIT_SSH_VARIANT GIT_TERMINAL_PROMPT GIT_NO_REPLACE_OBJECTS
export GIT_CONFIG_NOSYSTEM GIT_CONFIG_GLOBAL GIT_ATTR_NOSYSTEM LC_ALL

setting() {
    export "GIT_CONFIG_KEY_$GIT_CONFIG_COUNT=$1" "GIT_CONFIG_VALUE_$GIT_CONFIG_COUNT=$2"
    GIT_CONFIG_COUNT=$((GIT_CONFIG_COUNT + 1))
}

# Settings in the environment overrule a mirror's own config file.
export GIT_CONFIG_COUNT=0
setting core.hooksPath "$GIT_GATE_APP/git_gate_hooks"
setting core.attributesFile /dev/null
setting core.warnAmbiguousRefs false           # a branch may be named like an object
setting core.bigFileThreshold 16m              # larger files: streamed by git, binary to "gitleaks git"
setting safe.directory '*'                     # a mounted volume may belong to another uid
setting gc.auto 0
setting maintenance.auto false
setting receive.autogc false
setting receive.fsckObjects true
setting receive.unpackLimit 1                  # keep packs: loose objects are no deltas, and may be far larger
setting pack.threads 1                         # a push or a fetch keeps one processor busy, not all
setting pack.windowMemory 32m                  # else a fetch holds ten files, each up to core.bigFileThreshold
setting receive.shallowUpdate false
setting receive.maxInputSize "${GIT_GATE_PUSH_MIB}m"
setting receive.denyDeleteCurrent ignore       # else git refuses after upstream has already deleted it
