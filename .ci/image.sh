#!/bin/sh
# Builds the bundle image for the tests: `image.sh TAG`, with the old builder and, if there is one, the new.
#
# PIPELOCK_IMAGE, GITLEAKS_IMAGE and MITMPROXY_IMAGE name the sources; the images of base-images.sh otherwise.
# Where that script could not make the real pipelock, the bundle holds a stand-in.
set -eu
cd "$(dirname "$0")/.."
tag="${1:?usage: image.sh TAG}"

.ci/base-images.sh

pipelock="${PIPELOCK_IMAGE:-sidecars-base/pipelock}"
if [ -z "${PIPELOCK_IMAGE:-}" ] && ! docker image inspect "$pipelock" >/dev/null 2>&1; then
    pipelock=sidecars-base/pipelock-standin
fi
echo "image: takes pipelock from $pipelock"

# build BUILDER CLIENT TAG: BUILDER is the value of DOCKER_BUILDKIT. The host's network, for apt.
build() {
    log="$(mktemp)"
    DOCKER_BUILDKIT="$1" "$2" build --network host -f Dockerfile.sidecars -t "$3" \
        --build-arg "PIPELOCK_IMAGE=$pipelock" \
        --build-arg "GITLEAKS_IMAGE=${GITLEAKS_IMAGE:-sidecars-base/gitleaks}" \
        --build-arg "MITMPROXY_IMAGE=${MITMPROXY_IMAGE:-sidecars-base/mitmproxy}" . >"$log" 2>&1 || {
        cat "$log" >&2
        echo "cannot build $3: the lines above say why" >&2
        exit 1
    }
    rm "$log"
}

# A client of before 23 brings BuildKit's side with it; later ones need the buildx plugin.
client_of_new_builder() {
    for client in $(which -a docker); do
        case "$("$client" --version)" in
            "Docker version 20."*) echo "$client"; return ;;
        esac
        if "$client" buildx version >/dev/null 2>&1; then echo "$client"; return; fi
    done
}

build 0 docker "$tag"
echo "image: built $tag with the old builder"
client="$(client_of_new_builder)"
if [ -n "$client" ]; then
    build 1 "$client" "$tag-buildkit"
    echo "image: built $tag-buildkit with the new builder"
else
    echo "image: not built with the new builder: no docker client here has one"
fi
