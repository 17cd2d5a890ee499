#!/usr/bin/env bash
# Builds the image and runs it under a real Docker engine, as `.ci/run` does before the other tests:
#   docker/test.sh                          for Debian and its kin; installs docker.io and curl where they are missing
#   RINGSERVE_IMAGE=NAME docker/test.sh     tests an image that is there already
# It pulls nothing, and leaves no container, network or image behind. Where there can be no engine it says so.
set -uo pipefail
cd "$(dirname "$0")/.."

mark="ringserve-test-$$"
work="$(mktemp -d)"
passed=0 failed=0 skipped=0
engine=

skip_all() {
    echo "docker tests: skipped: $1"
    exit 0
}

clean_up() {
    local made
    made="$(docker ps --all --quiet --filter "label=$mark")"
    [ -z "$made" ] || docker rm --force $made
    docker network rm "$mark"
    if [ -z "${RINGSERVE_IMAGE:-}" ]; then
        docker image rm "$mark:image"
        docker image prune --force --filter "label=ringserve-base=$mark:base"
        docker image rm "$mark:base"
    fi
    # Only an engine that was started here.
    [ -z "$engine" ] || { kill "$engine" && wait "$engine"; }
    rm -rf "$work"
}

install() {
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"; } >"$work/apt.log" 2>&1
}

answers() {
    docker info >/dev/null 2>&1
}

trap 'clean_up >/dev/null 2>&1' EXIT
command -v curl >/dev/null || install curl || skip_all "curl is missing, and cannot be installed"
if ! answers; then
    if ! command -v dockerd >/dev/null; then
        # Newer ones have the client in a package of its own.
        { install docker.io && { command -v docker >/dev/null || install docker-cli; }; } ||
            skip_all "there is no Docker engine, and docker.io cannot be installed"
    fi
    # Where no init system has mounted the control groups.
    if [ ! -e /sys/fs/cgroup/cgroup.controllers ] && [ ! -e /sys/fs/cgroup/devices ]; then
        install cgroupfs-mount && cgroupfs-mount || true
    fi
fi
if ! answers; then
    dockerd >"$work/dockerd.log" 2>&1 &
    engine=$!
    for _ in {1..150}; do
        answers && break
        kill -0 "$engine" 2>/dev/null || break
        sleep 0.2
    done
    answers || { tail -5 "$work/dockerd.log"; skip_all "dockerd does not run here"; }
fi

image="${RINGSERVE_IMAGE:-$mark:image}"
if [ -z "${RINGSERVE_IMAGE:-}" ]; then
    echo "docker tests: building the image"
    if ! { docker/build-base.sh "$mark:base" &&
        docker build --force-rm -f docker/Dockerfile --build-arg "BUILD_IMAGE=$mark:base" -t "$image" .; } \
        >"$work/build.log" 2>&1; then
        tail -40 "$work/build.log"
        echo "docker tests: the image cannot be built"
        exit 1
    fi
fi
docker network create --label "$mark" --subnet 172.31.247.0/24 "$mark" >/dev/null || exit 1

### What the cases are made of. In each, a command that fails ends the case.

# Starts a container with these options; sets $id and $address.
start() {
    id="$(docker run --detach --label "$mark" "$@" "$image")"
    address="$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$id")"
    wait_until has_logged 'http://'
}

# Something runs to its end in a container with these options.
run_once() {
    docker run --rm --label "$mark" "$@"
}

wait_until() {
    for _ in {1..150}; do
        if "$@"; then return 0; fi
        sleep 0.1
    done
    echo "not within 15 seconds: $*"
    docker logs "$id"
    return 1
}

has_logged() {
    # Not grep -q, which would end before all is written.
    docker logs "$id" 2>&1 | grep -e "$1" >/dev/null
}

state() {
    docker inspect --format "{{.State.$1}}" "$id"
}

is_health() {
    [ "$(state Health.Status)" = "$1" ]
}

serves() {
    curl --noproxy "*" --silent --show-error --fail --max-time 15 --output "$work/got" "http://$address:8080/$2"
    cmp "$work/got" "$1"
}

# Ends well, within the time that Docker gives it.
stops() {
    docker stop --time 20 "$id" >/dev/null
    [ "$(state ExitCode)" = 0 ]
}

# A folder for everybody, with a file of so many MiB.
make_site() {
    mkdir -p "$work/site"
    echo mounted >"$work/site/index.html"
    [ -s "$work/site/$1.bin" ] || head -c "$1M" /dev/urandom >"$work/site/$1.bin"
    chmod -R go+rX "$work" "$work/site"
}

### The cases.

the_image_is_small() {
    local size
    size="$(docker image inspect --format '{{.Size}}' "$image")"
    echo "note: the image has $size bytes"
    [ "$size" -lt 8000000 ]
}

the_default_profile_means_epoll_and_a_remedy() {
    start --security-opt seccomp=docker/seccomp-base.json
    serves static/index.html ''
    has_logged 'engine epoll: uring cannot run here: io_uring_setup: Operation not permitted'
    has_logged 'seccomp filter.*to allow it:.*docker run --security-opt seccomp=seccomp.json'
    [ "$(docker logs "$id" 2>/dev/null | grep -c 'with epoll (uring cannot run here:.*seccomp')" = 1 ]
    local code=0
    docker exec "$id" /ringserve doctor --port 0 >/dev/null || code=$?
    [ "$code" = 3 ]
    stops
}

the_narrow_profile_means_uring() {
    start --security-opt seccomp=docker/seccomp.json
    serves static/index.html ''
    has_logged 'with uring (the kernel permits it)'
    docker exec "$id" /ringserve doctor --port 0 >/dev/null
    stops
}

the_profile_is_what_the_image_prints() {
    run_once "$image" doctor --seccomp-profile docker >"$work/profile.json"
    cmp "$work/profile.json" docker/seccomp.json
}

it_serves_in_a_narrow_container() {
    make_site 96
    for number in {1..96}; do
        [ -s "$work/site/$number.dat" ] || head -c 1000000 /dev/urandom >"$work/site/$number.dat"
    done
    chmod -R go+rX "$work/site"
    start --read-only --cap-drop ALL --security-opt no-new-privileges --security-opt seccomp=docker/seccomp.json \
        --user 12345 --memory 32m --cpus 0.5 --ulimit nofile=256 --ulimit memlock=65536 -v "$work/site:/public:ro"
    has_logged ', 1 worker$'
    docker logs "$id" 2>&1 | sed -n 's/^ringserve serves/note: in it ringserve serves/p' | cut -c 1-150
    # There may be no memory left to lock for a second ring.
    docker exec "$id" /ringserve doctor --port 0 >"$work/doctor" || [ $? = 3 ]
    grep 'cpu: a quota of 0.5 CPUs.*workers: 1$' "$work/doctor"
    grep 'memory: a limit of 32 MiB; for files in memory: 8 MiB' "$work/doctor"
    # More than fits into all of its memory, and twice.
    for _ in 1 2; do
        for number in {1..96}; do serves "$work/site/$number.dat" "$number.dat"; done
        serves "$work/site/96.bin" 96.bin
    done
    # What a client does not take does not pile up in the kernel.
    local client queued
    exec {client}<>"/dev/tcp/$address/8080"
    printf 'GET /96.bin HTTP/1.1\r\nHost: test\r\n\r\n' >&"$client"
    sleep 1
    queued="$(tail -q -n +2 "/proc/$(state Pid)/net/tcp" "/proc/$(state Pid)/net/tcp6" |
        while read -r _ _ _ _ queues _; do echo "$((16#${queues%%:*}))"; done | sort -n | tail -1)"
    [ "$queued" -gt 0 ] && [ "$queued" -lt 500000 ]
    exec {client}>&-
    # More clients than descriptors. Each has asked once, so that it is no mere connection, and for another file,
    # so that many are read into memory at once.
    local clients=()
    for number in {1..400}; do
        exec {client}<>"/dev/tcp/$address/8080"
        printf 'GET /%d.dat HTTP/1.1\r\nHost: test\r\nRange: bytes=0-9\r\n\r\n' $((number % 96 + 1)) >&"$client"
        clients+=("$client")
    done
    wait_until has_logged 'accepting pauses, for there is no room'
    # Those who came first are served all the while.
    printf 'GET /1.dat HTTP/1.1\r\nHost: test\r\nRange: bytes=0-9\r\n\r\n' >&"${clients[0]}"
    { timeout 2 cat <&"${clients[0]}" || :; } | grep -a -o 'HTTP/1.1 206' | wc -l | grep -x 2
    for client in "${clients[@]}"; do exec {client}>&-; done
    serves "$work/site/2.dat" 2.dat
    [ "$(state Running) $(state OOMKilled)" = 'true false' ]
    stops
}

a_download_under_way_is_finished() {
    make_site 96
    start -v "$work/site:/public:ro"
    curl --noproxy "*" --silent --show-error --fail --limit-rate 32M --output "$work/slow" "http://$address:8080/96.bin" &
    local download=$!
    sleep 0.8
    local before size
    before="$(date +%s%N)"
    size="$(stat --format %s "$work/slow")"
    stops
    [ "$size" -lt 96000000 ]
    wait "$download"
    cmp "$work/slow" "$work/site/96.bin"
    echo "note: $size of 100663296 bytes were there at docker stop, which took" \
        "$((($(date +%s%N) - before) / 1000000)) ms"
}

health_is_told() {
    start --health-interval 500ms --health-timeout 1s --health-retries 1 --health-start-period 0s
    wait_until is_health healthy
    docker kill --signal STOP "$id" >/dev/null
    wait_until is_health unhealthy
    docker kill --signal CONT "$id" >/dev/null
    wait_until is_health healthy
    stops
}

it_is_an_ordinary_user_and_a_mount_is_the_site() {
    make_site 1
    start -v "$work/site:/public:ro" --publish 127.0.0.1::8080
    grep -E '^(Uid|Gid):' "/proc/$(state Pid)/status" | tr -s '\t' ' ' | sort >"$work/ids"
    printf 'Gid: 1000 1000 1000 1000\nUid: 1000 1000 1000 1000\n' | cmp - "$work/ids"
    serves "$work/site/index.html" ''
    curl --noproxy "*" --silent --fail --max-time 15 "http://$(docker port "$id" 8080 | sed -n 1p)/" | cmp - "$work/site/index.html"
    stops
}

names_are_looked_up_in_the_image() {
    local options=(--network "$mark" --read-only --cap-drop ALL --security-opt no-new-privileges
        --security-opt seccomp=docker/seccomp.json)
    start "${options[@]}" --network-alias server
    # As compose.yaml has it, but for a quick look with one engine.
    run_once "${options[@]}" --tmpfs /tmp "$image" \
        compare --quick --engines epoll --url http://server:8080/ >"$work/table" 2>&1
    grep 'http://server:8080/' "$work/table"
    local code=0
    run_once "${options[@]}" --tmpfs /tmp "$image" compare --engines none --url http://nobody:8080/ \
        >"$work/table" 2>&1 || code=$?
    [ "$code" = 1 ]
    stops
}

median() {
    sort -n | sed -n "$((($1 + 1) / 2))p"
}

# How much later than an empty container's start is the first answer? Both are the same image. It is shown, and
# no test: a busy machine would fail it.
it_starts_at_once() {
    local runs=15 begun began_only answered
    : >"$work/empty" && : >"$work/first"
    for _ in $(seq "$runs"); do
        begun="$(date +%s%N)"
        id="$(docker run --detach --label "$mark" --no-healthcheck --network "$mark" --ip 172.31.247.77 "$image" --version)"
        began_only="$(date +%s%N)"
        echo "$(((began_only - begun) / 1000))" >>"$work/empty"
        docker rm --force "$id" >/dev/null
        begun="$(date +%s%N)"
        id="$(docker run --detach --label "$mark" --no-healthcheck --network "$mark" --ip 172.31.247.77 "$image")"
        until answers_at_all; do :; done
        answered="$(date +%s%N)"
        echo "$(((answered - begun) / 1000))" >>"$work/first"
        docker rm --force "$id" >/dev/null
    done
    local empty first
    empty="$(median "$runs" <"$work/empty")"
    first="$(median "$runs" <"$work/first")"
    echo "note: docker run takes $empty us for an empty container, $first us to the first answer (medians of $runs)"
}

# One request, without a process of its own.
answers_at_all() {
    local server line
    { exec {server}<>/dev/tcp/172.31.247.77/8080; } 2>/dev/null || return 1
    printf 'GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n' >&"$server"
    read -r line <&"$server"
    exec {server}>&-
    [ "${line:0:12}" = 'HTTP/1.1 200' ]
}

### Runs a case in a shell of its own, and shows what it did where it fails.
try() {
    ( set -eux && "$1" ) >"$work/case.log" 2>&1
    if [ $? = 0 ]; then
        echo "docker test $1 ... ok"
        passed=$((passed + 1))
    else
        cat "$work/case.log"
        echo "docker test $1 ... FAILED"
        failed=$((failed + 1))
    fi
    sed -n 's/^note: /    /p' "$work/case.log"
}

for case in the_image_is_small the_profile_is_what_the_image_prints the_default_profile_means_epoll_and_a_remedy \
    it_serves_in_a_narrow_container a_download_under_way_is_finished health_is_told \
    it_is_an_ordinary_user_and_a_mount_is_the_site names_are_looked_up_in_the_image it_starts_at_once; do
    try "$case"
done
if run_once --security-opt seccomp=unconfined "$image" doctor --port 0 >/dev/null; then
    try the_narrow_profile_means_uring
else
    echo "docker test the_narrow_profile_means_uring ... skipped: this host forbids io_uring beyond any profile"
    skipped=$((skipped + 1))
fi
echo "docker tests: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
