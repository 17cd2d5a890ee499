#!/bin/bash
# What a second worker brings: one worker and two, in turns, each worker held to a fifth of a core of its own, so
# that the server is what limits and the clients find room on the same two cores.
#
#   benches/workers.sh [ENGINE [ROUNDS [CLIENTS]]]
#
# Needs root, two cores, wrk, a release build, and the cpu controller of control groups version 1.
set -euo pipefail
engine=${1:-uring} rounds=${2:-5} clients=${3:-64}
program=$(cd "$(dirname "$0")/.." && pwd)/target/release/ringserve
groups=/sys/fs/cgroup/cpu
folder=$(mktemp -d)
mkdir "$folder/site"
head -c 1024 /dev/urandom >"$folder/site/a.bin"
for number in 0 1; do
    mkdir "$groups/ringserve-$$-$number"
    echo 10000 >"$groups/ringserve-$$-$number/cpu.cfs_period_us"
    echo 2000 >"$groups/ringserve-$$-$number/cpu.cfs_quota_us"
done
trap 'rm -rf "$folder"; sleep 0.1; rmdir "$groups/ringserve-$$-"?' EXIT

# Requests per second of so many workers.
measure() {
    "$program" "$folder/site" --host 127.0.0.1 --port 0 --engine "$engine" --workers "$1" \
        --log-level error >"$folder/said" &
    local server=$! url number=0
    until url=$(grep -o '^http://.*/' "$folder/said"); do sleep 0.1; done
    for thread in "/proc/$server/task/"*; do
        if [[ $(<"$thread/comm") == "$engine-"* ]]; then
            echo "${thread##*/}" >"$groups/ringserve-$$-$number/tasks"
            number=$((number + 1))
        fi
    done
    wrk -t2 -c"$clients" -d1s "${url}a.bin" >"$folder/warm"
    wrk -t2 -c"$clients" -d2s "${url}a.bin" | awk '/^Requests\/sec/ { print $2 }'
    kill "$server"
    wait "$server"
}

for ((round = 0; round < rounds; round++)); do
    echo "$(measure 1) $(measure 2)"
done | awk '{ printf "%s: 1 worker %d, 2 workers %d requests per second: %.2f times\n", engine, $1, $2, $2 / $1 }
    { print $2 / $1 | "sort -n >&3" }' engine="$engine" 3>"$folder/ratios"
echo "median: $(sed -n "$(((rounds + 1) / 2))p" "$folder/ratios") times"
