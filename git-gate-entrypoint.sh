#!/bin/sh
# The daemon "git-gate": mirrors of the listed repositories on port 9418, for fetches and for pushes that pass the
# gate (app/git_gate_pre_receive.py). Prepares the mirrors, then becomes git_gate_daemon.py.
#
# The list, GIT_GATE_MIRRORS, has one "NAME URL [no-force-push=PATTERNS] [no-delete=PATTERNS]" a line; "#" begins a
# comment. Agents cannot force-push or delete a branch that one of the PATTERNS, separated by commas, matches; the
# default of both is main,master. A tag is tags/NAME there.
set -eu
: "${GIT_GATE_APP:=/app}"
# shellcheck source=/dev/null
. "$GIT_GATE_APP/git_gate_env.sh"

say() { echo "git-gate: $*" >&2; }

# The programs of the gate read the key when they need it (git_gate_mirror.py).
look_at_ssh_key() {
    [ -r "$GIT_GATE_SSH_KEY" ] ||
        say "cannot read the ssh key $GIT_GATE_SSH_KEY: mount one there; until then ssh upstreams are out of reach"
}

look_at_root() {
    if ! mkdir -p "$GIT_GATE_ROOT"; then
        echo "cannot make $GIT_GATE_ROOT: mount a directory there that belongs to uid $(id -u)" >&2
        exit 1
    fi
    for directory in "$GIT_GATE_ROOT" "$GIT_GATE_ROOT"/*.git; do
        if [ -d "$directory" ] && ! [ -w "$directory" ]; then
            echo "cannot write to $directory: it belongs to uid $(stat --format %u "$directory");" \
                "run chown -R $(id -u):$(id -g) $GIT_GATE_ROOT as root" >&2
            exit 1
        fi
    done
    if [ -n "$(find "$GIT_GATE_ROOT" -maxdepth 0 -perm -o=w)" ]; then
        say "every account can write to $GIT_GATE_ROOT, and so replace the mirrors: mount a directory of mode 0755" \
            "that belongs to uid $(id -u)"
    fi
}

usable_name() {
    case $1 in
    '' | .* | -* | *..* | *.lock | *[!A-Za-z0-9._-]*) false ;;
    esac
}

# git shows URLs to the pusher and in the log, so they must hold no secret: in http, neither a user (often a token) nor
# a query; elsewhere, no password. Of "helper::address" nothing is known.
usable_url() {
    case $1 in
    '' | -*) return 1 ;;
    *://*) ;;
    *::*) case ${1%%::*} in *[!A-Za-z0-9+.-]*) ;; *) return 1 ;; esac ;;
    esac
    authority=${1#*://}
    authority=${authority%%/*}
    case $1 in
    ssh://* | git+ssh://* | ssh+git://*) case $authority in *:*@*) false ;; esac ;;
    *://*)
        case $authority in *@*) return 1 ;; esac
        case $1 in http*\?*) return 1 ;; esac
        ;;
    *) case $authority in *:*@*) false ;; esac ;;
    esac
}

usable_options() {
    for option; do
        case $option in
        no-force-push=* | no-delete=*) ;;
        *) return 1 ;;
        esac
        case ${option#*=} in *[!]A-Za-z0-9._/*?![,-]*) return 1 ;; esac
    done
}

# An account that can read a lock file can lock it, and so stop every push. Earlier versions made them readable.
close_lock_files() {
    (umask 077 && : >>"$GIT_GATE_ROOT/.busy")
    chmod -f 600 "$GIT_GATE_ROOT"/.busy "$GIT_GATE_ROOT"/.scan-* "$GIT_GATE_ROOT"/*.git/gate.* || :
}

# What a killed push or fetch leaves behind, unless a request is alive now. A branch can have any of these names but the
# last, and its file is below refs.
remove_leftovers() {
    # shellcheck disable=SC2153
    exec 8>>"$GIT_GATE_ROOT/.busy"
    if flock --nonblock 8; then
        for mirror in "$GIT_GATE_ROOT"/*.git; do
            [ -d "$mirror/objects" ] || continue
            find "$mirror/objects" -mindepth 1 -maxdepth 1 -name 'tmp_objdir-*' -exec rm -rf {} +
            find "$mirror/objects" -mindepth 2 -maxdepth 2 -type f \( -name 'tmp_*' -o -name '.tmp-*' \) -delete
            find "$mirror" -mindepth 1 -maxdepth 1 -type f ! -name gate.lock \
                \( -name packed-refs.new -o -name '*.lock' \) -delete
            find "$mirror/refs" -type f -name '*.lock' -delete
        done
    else
        say "a request is underway: leftovers of broken pushes stay until the next start"
    fi
    exec 8>&-
}

# The list on stdin; the names that were used on stdout.
prepare_mirrors() {
    set -f # the options hold patterns
    number=0
    used=' '
    while read -r name url rest || [ -n "$name" ]; do
        number=$((number + 1))
        case $name in '' | '#'*) continue ;; esac
        name=${name%.git}
        if ! usable_name "$name" || ! usable_url "$url"; then
            echo "cannot use line $number of $GIT_GATE_MIRRORS: write NAME URL, the name of letters, digits, . _ -" \
                "and the URL without a password, and in http without a user and a query" >&2
            continue
        fi
        # shellcheck disable=SC2086
        if ! usable_options $rest; then
            echo "cannot use line $number of $GIT_GATE_MIRRORS: after the URL, write no-force-push=PATTERN,PATTERN" \
                "or no-delete=PATTERN,PATTERN" >&2
            continue
        fi
        case $used in *" $name "*)
            echo "cannot use line $number of $GIT_GATE_MIRRORS: $name has two lines" >&2
            continue
            ;;
        esac
        used="$used$name "
        echo "$name"
        # shellcheck disable=SC2086
        prepare_mirror "$GIT_GATE_ROOT/$name.git" "$url" $rest </dev/null >&2 &
    done
    wait
}

set_protection() {
    mirror=$1 no_force_push=main,master no_delete=main,master
    shift 2
    for option; do
        case $option in
        no-force-push=*) no_force_push=${option#*=} ;;
        no-delete=*) no_delete=${option#*=} ;;
        esac
    done
    git -C "$mirror" config gate.noForcePush "$no_force_push" && git -C "$mirror" config gate.noDelete "$no_delete"
}

# A configuration that was changed here must not outlive a start.
prepare_mirror() {
    rm -f "$1/config"
    if ! git init --quiet --bare --initial-branch=main "$1" || ! git -C "$1" config gate.upstream "$2"; then
        echo "cannot make the mirror $1: see git's reason above" >&2
        return
    fi
    set_protection "$@"
    GIT_GATE_SYNC_SECONDS=600 sh "$GIT_GATE_APP/git_gate_access_hook.sh" start "$1"
}

# Everything below GIT_GATE_ROOT is exported, so what is no longer listed must go. All of it is at upstream.
remove_unlisted() {
    for mirror in "$GIT_GATE_ROOT"/*.git; do
        name=$(basename "$mirror" .git)
        case "
$1
" in *"
$name
"*) continue ;; esac
        if git config --file "$mirror/config" gate.upstream >/dev/null 2>&1; then
            rm -rf "$mirror"
            say "removed mirror $name: it is not in the list"
        fi
    done
}

mirrors=
if [ -r "$GIT_GATE_MIRRORS" ]; then
    look_at_root
    look_at_ssh_key
    close_lock_files
    remove_leftovers
    mirrors=$(tr -d '\r' <"$GIT_GATE_MIRRORS" | prepare_mirrors)
fi
remove_unlisted "$mirrors"
if [ -n "$mirrors" ]; then
    say "mirrors: $(echo "$mirrors" | tr '\n' ' ')"
else
    say "no mirrors configured in $GIT_GATE_MIRRORS: serving none"
fi

exec python3 "$GIT_GATE_APP/git_gate_daemon.py"
