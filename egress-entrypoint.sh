#!/bin/sh
# Starts the egress daemon: mitmdump with the addon that decides what leaves and with which token.
# Checks first what mitmdump passes over in silence, then becomes it.
#
#   EGRESS_TOKEN_*         the tokens that routes name; read by the addon alone
#   EGRESS_ROUTES          what may leave            /etc/egress/routes.yaml
#   EGRESS_UPSTREAM_PROXY  where it goes             http://127.0.0.1:8888; empty: straight out
#   EGRESS_UPSTREAM_CA     who vouches for servers   a PEM file instead of mitmproxy's own set; empty: that set
#   EGRESS_CONFDIR         the CA shown to clients   $HOME/.mitmproxy; made there at the first start
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
confdir=${EGRESS_CONFDIR:-${HOME:-}/.mitmproxy}
proxy=${EGRESS_UPSTREAM_PROXY-http://127.0.0.1:8888}
ca=${EGRESS_UPSTREAM_CA:-}

command -v mitmdump >/dev/null || fail "find mitmdump on PATH; install mitmproxy"

# mitmdump drops a script that changes or goes away, and proxies on without it.
is_readable_file "$addon" || fail "read the addon $addon; mount it, or name it in EGRESS_ADDON"
for path in "$addon" "$(dirname -- "$addon")"; do
    [ ! -w "$path" ] || fail "trust $path: uid $(id -u) may write there; run egress as an account that may not"
done

is_readable_file "$routes" || fail "read the routes $routes; mount them, or name the file in EGRESS_ROUTES"

# With a missing or an empty CA file every HTTPS request would end in 502.
[ -z "$ca" ] || grep -q -e '-----BEGIN .*CERTIFICATE-----' -- "$ca" 2>/dev/null ||
    fail "find a certificate in $ca; set EGRESS_UPSTREAM_CA to a readable PEM file, or unset it"

[ -d "$confdir" ] || mkdir -p -- "$confdir" 2>/dev/null || fail "make $confdir for the proxy's CA; set EGRESS_CONFDIR"
[ -r "$confdir/mitmproxy-ca.pem" ] || [ -w "$confdir" ] ||
    fail "keep the proxy's CA in $confdir: it holds none and uid $(id -u) cannot write there; set EGRESS_CONFDIR"
for path in "$confdir/config.yaml" "$confdir/config.yml"; do
    [ ! -e "$path" ] || fail "start with $path: it could switch the checks off; remove it"
done

case $proxy in
    '') mode=regular ;;
    http://?* | https://?*) mode=upstream:$proxy ;;
    *) fail "use EGRESS_UPSTREAM_PROXY: not an http:// or https:// URL" ;;
esac

unset SSLKEYLOGFILE MITMPROXY_SSLKEYLOGFILE
export EGRESS_ROUTES="$routes" PYTHONUNBUFFERED=1
# The addon opens the port.
exec mitmdump --no-server --mode "$mode" --listen-host 0.0.0.0 --listen-port "$port" --scripts "$addon" \
    --set confdir="$confdir" --set flow_detail=0 --set termlog_verbosity=warn \
    ${ca:+--set "ssl_verify_upstream_trusted_ca=$ca"}
