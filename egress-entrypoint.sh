#!/bin/sh
# Starts the egress daemon: mitmdump with the addon that decides what leaves and with which token.
# Checks first what mitmdump passes over in silence, then becomes it.
#
#   EGRESS_TOKEN_*         the tokens that routes name; read by the addon alone
#   EGRESS_ROUTES          what may leave            /etc/egress/routes.yaml
#   EGRESS_UPSTREAM_PROXY  where it goes             http://127.0.0.1:8888, pipelock; empty: straight out
#   EGRESS_UPSTREAM_CA     the CAs of servers        a PEM file instead of mitmproxy's own set; empty: that set
#   EGRESS_CONFDIR         the CA shown to clients   the one mounted at $HOME/.mitmproxy/mitmproxy-ca.pem; else
#                                                    /var/lib/egress if it exists, else $HOME/.mitmproxy: made there
#   EGRESS_LOG             which requests it logs    all; refused: only those
#   EGRESS_PORT            where clients come in     9099
#   EGRESS_ADDON           the addon                 /app/egress_addon.py
set -eu

# HUP reloads the routes. Until the addon has its handler it would kill; what it announced is read by then.
trap '' HUP

fail() {
    printf 'cannot %s\n' "$1" >&2
    exit 1
}

is_readable_file() {
    [ -f "$1" ] && [ -r "$1" ]
}

addon=${EGRESS_ADDON:-/app/egress_addon.py}
routes=${EGRESS_ROUTES:-/etc/egress/routes.yaml}
port=${EGRESS_PORT:-9099}
confdir=${EGRESS_CONFDIR:-}
home=${HOME:-}/.mitmproxy
log=${EGRESS_LOG:-all}
proxy=${EGRESS_UPSTREAM_PROXY-http://127.0.0.1:8888}
ca=${EGRESS_UPSTREAM_CA:-}

command -v mitmdump >/dev/null || fail "find mitmdump on PATH; install mitmproxy"

# mitmdump drops a script that changes or goes away, and proxies on without it.
is_readable_file "$addon" || fail "read the addon $addon; mount it, or name it in EGRESS_ADDON"
programs=$(dirname -- "$addon")
for path in "$addon" "$programs" "$programs"/egress_*.py "$programs/__pycache__"; do
    [ ! -w "$path" ] || fail "trust $path: uid $(id -u) may write there; run egress as an account that may not"
done

is_readable_file "$routes" || fail "read the routes $routes; mount them, or name the file in EGRESS_ROUTES"

# With a missing or an empty CA file every HTTPS request would end in 502.
[ -z "$ca" ] || grep -q -e '-----BEGIN .*CERTIFICATE-----' -- "$ca" 2>/dev/null ||
    fail "find a certificate in $ca; set EGRESS_UPSTREAM_CA to a readable PEM file, or unset it"

# A CA that a host mounts where mitmproxy looks for it is the one that its agents trust: never make another instead.
if [ -z "$confdir" ]; then
    [ ! -d "$home" ] || [ -x "$home" ] || fail "look into $home: uid $(id -u) may not; give it mode 0755"
    if [ -e "$home/mitmproxy-ca.pem" ] || [ ! -d /var/lib/egress ]; then confdir=$home; else confdir=/var/lib/egress; fi
fi
ca_file=$confdir/mitmproxy-ca.pem
[ -d "$confdir" ] || mkdir -p -- "$confdir" 2>/dev/null || fail "make $confdir for the proxy's CA; set EGRESS_CONFDIR"
if [ -e "$ca_file" ]; then
    is_readable_file "$ca_file" || fail "read the proxy's CA $ca_file: uid $(id -u) may not; give it mode 0644"
    for part in CERTIFICATE 'PRIVATE KEY'; do
        grep -q -e "-----BEGIN .*$part-----" -- "$ca_file" ||
            fail "use the proxy's CA $ca_file: no $part in it; it must hold the certificate and its key"
    done
    # mitmproxy wants to write a file beside it.
    if [ ! -w "$confdir" ] && [ ! -e "$confdir/mitmproxy-dhparam.pem" ]; then
        confdir=$(mktemp -d 2>/dev/null) || fail "make a directory in ${TMPDIR:-/tmp}; mount a tmpfs there"
        ln -s -- "$ca_file" "$confdir/mitmproxy-ca.pem"
    fi
else
    [ -w "$confdir" ] ||
        fail "keep the proxy's CA in $confdir: it holds none and uid $(id -u) cannot write there; set EGRESS_CONFDIR"
fi
for path in "$confdir/config.yaml" "$confdir/config.yml"; do
    [ ! -e "$path" ] || fail "start with $path: it could switch the checks off; remove it"
done

case $log in
    all | refused) ;;
    *) fail "use EGRESS_LOG: it is neither all nor refused" ;;
esac

# Where pipelock does not run, its port is closed and nothing passes: going around it is for the operator to choose.
case $proxy in
    '')
        mode=regular
        echo "egress: EGRESS_UPSTREAM_PROXY is empty: requests leave without pipelock or another proxy"
        ;;
    http://?* | https://?*) mode=upstream:$proxy ;;
    *) fail "use EGRESS_UPSTREAM_PROXY: not an http:// or https:// URL" ;;
esac

unset SSLKEYLOGFILE MITMPROXY_SSLKEYLOGFILE
export EGRESS_ROUTES="$routes" EGRESS_LOG="$log" PYTHONUNBUFFERED=1
# The addon opens the port.
exec mitmdump --no-server --mode "$mode" --listen-host 0.0.0.0 --listen-port "$port" --scripts "$addon" \
    --set confdir="$confdir" --set flow_detail=0 --set termlog_verbosity=warn \
    ${ca:+--set "ssl_verify_upstream_trusted_ca=$ca"}
