#!/bin/sh
# A Docker engine for the tests: `engine.sh start` makes one answer, `engine.sh stop` ends what start began.
#
# An engine that answers already is used as it is and left alone. The storage driver is the engine's own
# choice: overlay2 where the kernel has it (a container starts in 0.3 s), vfs elsewhere (7 s).
set -eu

state="${TMPDIR:-/tmp}/sidecar-init-engine"
log="$state/dockerd.log"
pidfile="$state/pid"

cannot() {
    echo "cannot $*" >&2
    exit 1
}

answers() {
    docker info >/dev/null 2>&1
}

install_tools() {
    missing=""
    for tool in dockerd:docker.io docker:docker.io mmdebstrap:mmdebstrap; do
        command -v "${tool%%:*}" >/dev/null || missing="$missing ${tool##*:}"
    done
    [ -n "$missing" ] || return 0
    [ "$(id -u)" = 0 ] || cannot "install$missing: not root; install them by hand"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -o DPkg::Lock::Timeout=300 -qq update
    # The package's own service would be a second engine on the same socket.
    # shellcheck disable=SC2086 # a list of words
    RUNLEVEL=1 apt-get -o DPkg::Lock::Timeout=300 -qq install --no-install-recommends $missing >/dev/null
}

start() {
    install_tools
    answers && { echo "engine: the one that runs here"; return 0; }
    [ "$(id -u)" = 0 ] || cannot "start dockerd: not root; start an engine by hand"
    mkdir -p "$state"
    setsid nohup dockerd --pidfile "$pidfile" </dev/null >"$log" 2>&1 &
    tries=0
    until answers; do
        tries=$((tries + 1))
        [ "$tries" -le 300 ] || cannot "reach dockerd after 60 s: $(tail -n 1 "$log"); the whole of it is in $log"
        sleep 0.2
    done
    echo "engine: started, pid $(cat "$pidfile"), log $log"
}

stop() {
    [ -s "$pidfile" ] || return 0
    pid="$(cat "$pidfile")"
    # A pid that was given to another process since is none of ours.
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ] || return 0
    kill "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    echo "engine: stopped"
}

case "${1:-}" in
    start) start ;;
    stop) stop ;;
    *) echo "usage: engine.sh start|stop" >&2; exit 2 ;;
esac
