#!/usr/bin/env bash
# Soak test: does memory stay where it is while the server works for long, and does every answer come?
#
#   benches/soak.sh [--minutes N] [--engines "uring epoll"] [--binary PATH] [--samples FOLDER]
#
# Each engine in turn serves 10,000 small files, more than twice what its cache may hold, and some large ones,
# to clients that keep their connection, to clients that open one for each request, and to rude ones that
# break off. Memory is RSS and the files in memory that the server holds, which RSS leaves out; bodies move
# from one to the other, so RSS alone says little. It passes if
#
# - memory is flat: in the last fifth of the time its median is at most 2 % above that of the second fifth
#   (the first one fills the cache; a single sample swings by some percent with what is being sent; and in
#   less than five minutes there are too few, so there growth is only shown),
# - memory never passes what an idle server takes + the cache's budget + a margin for all that is not cache,
# - no polite client saw an error, and the server ended cleanly when told to.
#
# Exit code: 0 passed, 1 not, 2 wrong usage or something is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

cache_mib=64
# What is not cache: heads and bodies on their way, and what the allocator keeps between them.
margin_mib=$((cache_mib / 4 + 16))
growth_max=2 # percent
minutes_to_judge=5
sample_every=5
connections_kept=64
connections_short=8

minutes=10
engines="uring epoll"
binary=
samples=

die() {
    echo "soak.sh: $2" >&2
    exit "$1"
}

while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || die 2 "usage: soak.sh [--minutes N] [--engines NAMES] [--binary PATH] [--samples FOLDER]"
    case $1 in
    --minutes) minutes=$2 ;;
    --engines) engines=$2 ;;
    --binary) binary=$2 ;;
    --samples) samples=$2 ;;
    *) die 2 "unknown option $1" ;;
    esac
    shift 2
done
[[ $minutes =~ ^[1-9][0-9]*$ ]] || die 2 "--minutes wants a whole number, not $minutes"
command -v wrk >/dev/null || die 2 "wrk is missing: install it, as with apt-get install wrk"
if [ -z "$binary" ]; then
    cargo build --release --locked --quiet
    binary=$(cargo metadata --no-deps --format-version 1 --locked |
        sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/ringserve
fi
[ -x "$binary" ] || die 2 "$binary is no program"
[ -z "$samples" ] || mkdir -p "$samples"
seconds=$((minutes * 60))

# Whatever way out is taken, nothing started here outlives it.
folder=$(mktemp -d)
started=()
cleanup() {
    if [ ${#started[@]} -gt 0 ]; then
        kill -KILL "${started[@]}" 2>/dev/null || true
        wait "${started[@]}" 2>/dev/null || true
    fi
    rm -rf "$folder"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# 10,000 files of 0.5 to 32 KiB, 20 of 64 KiB, 10 of 1 MiB, 3 of 64 MiB; the sizes are the same every time.
make_files() {
    mkdir -p "$1/small" "$1/medium" "$1/large" "$1/huge"
    awk -v root="$1" '
        function file(name, size) { name = root "/" name; print substr(block, 1, size) > name; close(name) }
        BEGIN {
            ORS = ""
            srand(1)
            for (block = "Of all the files in all the towns. "; length(block) < 2 ^ 20;) block = block block
            for (n = 0; n < 10000; n++) file(sprintf("small/%04d.html", n), 512 + int(rand() * (32768 - 511)))
            for (n = 0; n < 20; n++) file("medium/" n ".js", 65536)
            for (n = 0; n < 10; n++) file("large/" n ".bin", 1048576)
        }'
    for n in 0 1 2; do
        for _ in {1..64}; do cat "$1/large/0.bin"; done >"$1/huge/$n.bin"
    done
}

# What polite clients ask: mostly random small files, sometimes with a condition or a range. Bytes of large
# files are about half of all.
cat >"$folder/ask.lua" <<'LUA'
function init(arguments)
    close = arguments[1] == "close"
    math.randomseed(close and 1 or 2)
end

function request()
    local kind, path, headers = math.random(), nil, {}
    if kind < 0.97 then path = string.format("/small/%04d.html", math.random(0, 9999))
    elseif kind < 0.993 then path = string.format("/medium/%d.js", math.random(0, 19))
    elseif kind < 0.9999 or close then path = string.format("/large/%d.bin", math.random(0, 9))
    else path = string.format("/huge/%d.bin", math.random(0, 2)) end
    local condition = math.random()
    if condition < 0.05 then headers["If-None-Match"] = "*"
    elseif condition < 0.08 then headers["Range"] = "bytes=100-299"
    elseif condition < 0.09 then headers["Range"] = "bytes=0-9,100-199,-50" end
    if close then headers["Connection"] = "close" end
    return wrk.format("GET", path, headers)
end
LUA

# Clients nobody wants, some twenty a second: each breaks off in a manner of its own. Some never read.
rude() {
    local port=$1 n=0 kind fd stuck=() rest='HTTP/1.1\r\nHost: h\r\n'
    # A server that hangs up on it is what it asks for.
    trap '' PIPE
    exec 2>/dev/null
    while sleep 0.05; do
        exec {fd}<>"/dev/tcp/127.0.0.1/$port" || continue
        kind=$((n++ % 8))
        case $kind in
        0) ;;
        1) printf 'GET /small/0001.html HTTP/1.1\r\nHo' >&"$fd" ;;
        2) printf "GET /huge/0.bin $rest\r\n" >&"$fd" && head -c 65536 <&"$fd" >/dev/null ;;
        3) for _ in {1..50}; do printf "GET /large/1.bin $rest\r\n" >&"$fd"; done ;;
        4) printf '\x16\x03\x01 this is not HTTP\r\n\r\n' >&"$fd" ;;
        5) printf "GET /missing/$n ${rest}Connection: close\r\n\r\n" >&"$fd" && cat <&"$fd" >/dev/null ;;
        6) printf "POST / ${rest}Transfer-Encoding: chunked\r\n\r\n5\r\nhe" >&"$fd" ;;
        7) printf "GET /huge/1.bin $rest\r\n" >&"$fd" ;;
        esac
        # These wait for a while with an answer that they do not read; the others end here.
        if [ "$kind" = 7 ]; then
            stuck+=("$fd")
            [ ${#stuck[@]} -gt 16 ] || continue
            fd=${stuck[0]}
            stuck=("${stuck[@]:1}")
        fi
        exec {fd}>&-
    done
}

# One line: seconds, then in KiB: RSS, RssAnon, RssShmem, files in memory, RSS + those; number of descriptors.
sample() {
    local pid=$1 held descriptors
    # A number may be another file's by the time it is asked about; a file in memory is one that has no name.
    held=$(find "/proc/$pid/fd" -lname '/memfd:*' -print0 2>/dev/null |
        xargs -0r stat -L -c '%h %b' 2>/dev/null | awk '$1 == 0 { sum += $2 } END { print int(sum / 2) }')
    descriptors=$(find "/proc/$pid/fd" -type l 2>/dev/null | wc -l)
    awk -v at="$2" -v held="$held" -v descriptors="$descriptors" '
        { value[$1] = $2 }
        END {
            rss = value["VmRSS:"]
            if (!rss) exit 1
            print at, rss, value["RssAnon:"], value["RssShmem:"], held, rss + held, descriptors
        }' "/proc/$pid/status"
}

# Judges such lines, of which the first is of the idle server.
judge() {
    # The middle one of the numbers of a column in a part of the time, and the highest.
    part() {
        awk -v column="$1" -v from="$2" -v to="$3" '$1 && $1 >= from && $1 < to { print $column }' "$table" |
            sort -n | awk '{ all[NR] = $1 } END { if (!NR) exit 1; print all[int((NR + 1) / 2)], all[NR] }'
    }
    local table=$1 fifth=$((seconds / 5)) name column first last before now max grown bad=0 idle limit
    for name in RSS memory; do
        column=$([ "$name" = RSS ] && echo 2 || echo 6)
        first=$(part "$column" "$fifth" $((2 * fifth))) && last=$(part "$column" $((4 * fifth)) "$seconds") &&
            max=$(part "$column" 0 "$seconds") || { echo "there were too few samples" && return 1; }
        before=${first% *} now=${last% *} max=${max#* }
        grown=$(awk -v a="$before" -v b="$now" 'BEGIN { printf "%+.1f", 100 * (b / a - 1) }')
        echo "$name: median $before KiB in the second fifth, $now in the last: $grown %; at most $max"
    done
    # What is left in the variables is of the memory.
    if [ "$minutes" -lt "$minutes_to_judge" ]; then
        echo "growth is judged from $minutes_to_judge minutes on: before, memory still settles"
    elif [ $((now * 100)) -gt $((before * (100 + growth_max))) ]; then
        bad=1
    fi
    idle=$(awk 'NR == 1 { print $6 }' "$table")
    limit=$((idle + (cache_mib + margin_mib) * 1024))
    echo "budget: at most $max KiB of $limit: idle $idle + cache $cache_mib MiB + margin $margin_mib MiB"
    [ "$max" -le "$limit" ] || bad=1
    return "$bad"
}

# Loads one engine and judges it.
soak() {
    local engine=$1 log=$folder/$1.log out=$folder/$1.out table=$folder/$1.tsv
    local server port kept short troublemaker at line clients code=0 failed= next=0
    : >"$out"
    "$binary" --root "$folder/root" --engine "$engine" --workers 1 --cache-size "${cache_mib}MiB" \
        --host 127.0.0.1 --port 0 >"$out" 2>"$log" &
    server=$!
    started+=("$server")
    for _ in {1..100}; do
        port=$(sed -n 's|^http://127.0.0.1:\([0-9]*\)/$|\1|p' "$out")
        [ -z "$port" ] || break
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    if [ -z "$port" ]; then
        echo "FAILED: $engine does not start: $(tail -n 1 "$log")"
        return 1
    fi
    sample "$server" 0 >"$table"

    wrk --threads 1 --connections "$connections_kept" --duration "${seconds}s" --timeout 20s \
        --script "$folder/ask.lua" "http://127.0.0.1:$port" >"$folder/kept" 2>&1 &
    kept=$!
    wrk --threads 1 --connections "$connections_short" --duration "${seconds}s" --timeout 20s \
        --script "$folder/ask.lua" "http://127.0.0.1:$port" -- close >"$folder/short" 2>&1 &
    short=$!
    rude "$port" &
    troublemaker=$!
    started+=("$kept" "$short" "$troublemaker")

    echo "$engine: $minutes minutes; KiB"
    local row='%8s %10s %10s %10s %14s %10s %12s\n'
    # shellcheck disable=SC2059
    printf "$row" seconds RSS RssAnon RssShmem 'files in mem.' memory descriptors
    SECONDS=0
    while kill -0 "$kept" 2>/dev/null; do
        sleep "$sample_every"
        at=$SECONDS
        # The last one would be of a server with nothing to do.
        [ "$at" -lt "$seconds" ] || break
        line=$(sample "$server" "$at") || break
        echo "$line" >>"$table"
        # Some twelve of them are shown.
        if [ "$at" -ge "$next" ]; then
            # shellcheck disable=SC2059,SC2086
            printf "$row" $line
            next=$((next + seconds / 12))
        fi
    done
    wait "$kept" "$short" || true
    kill "$troublemaker" 2>/dev/null || true
    wait "$troublemaker" 2>/dev/null || true
    [ -z "$samples" ] || cp "$table" "$samples/soak-$engine.tsv"

    kill -TERM "$server" 2>/dev/null || true
    wait "$server" || code=$?
    [ "$code" = 0 ] || failed+="; the server ended with code $code"
    if grep -q -h -e 'Socket errors' -e 'Non-2xx' "$folder/kept" "$folder/short"; then
        failed+="; polite clients saw errors"
    fi
    for clients in kept short; do
        echo "clients, $clients: $(grep -e 'requests in' -e 'Socket errors' -e 'Non-2xx' "$folder/$clients" |
            tr -s ' ' | paste -s -d ';')"
        grep -q 'requests in' "$folder/$clients" ||
            failed+="; wrk did not finish: $(tail -n 1 "$folder/$clients")"
    done
    echo "log: $(grep -c -e WARN -e ERROR "$log" || true) warnings and errors"
    grep -m 3 -e WARN -e ERROR "$log" || true
    judge "$table" || failed+="; memory grew too much"
    if [ -n "$failed" ]; then
        echo "FAILED: $engine: ${failed#; }"
        return 1
    fi
    echo "passed: $engine"
}

make_files "$folder/root"
result=0
for engine in $engines; do
    soak "$engine" || result=1
    echo
done
exit "$result"
