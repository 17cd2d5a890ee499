#!/bin/sh
# The generator of `ringserve compare` beside wrk: the same server, the same clients, one core for the server
# and another for the client, in turns. For each: requests per second, and the client's CPU time per request.
#
#   benches/generator.sh [ENGINE [ROUNDS [CLIENTS [SECONDS]]]]
#
# Needs two cores, wrk, python3, and a release build.
set -eu
engine=${1:-epoll} rounds=${2:-5} clients=${3:-64} seconds=${4:-3}
program=$(cd "$(dirname "$0")/.." && pwd)/target/release/ringserve
folder=$(mktemp -d)
mkdir "$folder/site"
head -c 1024 /dev/urandom >"$folder/site/a.bin"
taskset -c 0 "$program" "$folder/site" --host 127.0.0.1 --port 0 --engine "$engine" --workers 1 \
    --log-level error >"$folder/said" &
server=$!
trap 'kill $server; rm -rf "$folder"' EXIT
until url=$(grep -o '^http://.*/' "$folder/said"); do sleep 0.1; done
url=${url}a.bin

round=0
while [ $round -lt "$rounds" ]; do
    round=$((round + 1))
    "$program" compare --engines none --url "$url" --connections "$clients" --keep-alive on --rounds 1 \
        --duration "${seconds}s" --output "$folder/own" >/dev/null 2>&1
    python3 -c "
import json
run = json.load(open('$folder/own/samples.json'))['runs'][0]
print('own', run['requests'] / run['seconds'], run['generator_cpu'] * 1e6 / run['requests'])" >>"$folder/figures"
    python3 -c "
import re, resource, subprocess
command = 'taskset -c 1 wrk -t1 -c$clients -d${seconds}s $url'.split()
said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
used = resource.getrusage(resource.RUSAGE_CHILDREN)
requests = int(re.search(r'(\d+) requests in', said)[1])
print('wrk', requests / $seconds, (used.ru_utime + used.ru_stime) * 1e6 / requests)" >>"$folder/figures"
done
python3 -c "
import statistics
lines = [line.split() for line in open('$folder/figures')]
for name in 'own', 'wrk':
    rate, cpu = ([float(line[at]) for line in lines if line[0] == name] for at in (1, 2))
    low, high = min(cpu), max(cpu)
    print(f'{name}: {statistics.median(rate):,.0f} req/s, {statistics.median(cpu):.2f} us of the client per '
          f'request ({low:.2f} to {high:.2f}), medians of {len(cpu)} rounds')"
