#!/usr/bin/env bash
# Instructions per request through the in-memory path, counted by valgrind: the one figure without noise.
#
#   benches/instructions.sh                    counts, and compares with the figures in instructions.txt
#   benches/instructions.sh --record           counts, and writes the figures there
#   benches/instructions.sh --functions CASE   which functions of a case they belong to
#
# Exit code: 0 fine, or nothing to compare with; 1 a case takes over 10 % more than recorded, or could not be
# counted; 2 wrong usage, or no valgrind.
set -euo pipefail
cd "$(dirname "$0")/.."

# Each case runs with both numbers of requests; the difference belongs to requests alone, not to the start.
# Sixteen divides both, as the pipelined case asks for sixteen at a time.
few=1600
many=17600
# More than this in percent is a regression. Compilers of one version give the same figure every time.
tolerance=10
records=benches/instructions.txt

die() {
    echo "instructions.sh: $2" >&2
    exit "$1"
}

mode=compare
case "${1:-}" in
'') ;;
--record) mode=record ;;
--functions) mode=functions ;;
*) die 2 "usage: benches/instructions.sh [--record | --functions CASE]" ;;
esac
[ "$mode" != functions ] || [ $# -eq 2 ] || die 2 "--functions wants the name of a case"
command -v valgrind >/dev/null || die 2 "valgrind is missing: install it, as with apt-get install valgrind"

# Cargo names the program it has built, and the profile it has built it with.
built=$(cargo bench --locked --no-run --bench instructions --message-format=json |
    grep '"name":"instructions"' | grep '"executable":"') || die 1 "cargo bench did not build"
program=$(sed 's/.*"executable":"\([^"]*\)".*/\1/' <<<"$built")
[[ $built == *'"opt_level":"3"'* && $built == *'"debug_assertions":false'* ]] ||
    die 1 "the bench profile is not optimised as a release is: $built"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Runs a case under callgrind, so many requests; what callgrind writes lies in $folder/profile afterwards.
callgrind() {
    "$program" --exec valgrind --tool=callgrind --callgrind-out-file="$folder/profile" \
        "$program" --run "$1" "$2" >"$folder/output" 2>&1 ||
        { cat "$folder/output" >&2 && die 1 "$1 could not be counted"; }
}

# The instructions of such a run.
count() {
    callgrind "$1" "$2"
    awk '/Collected :/ { print $NF }' "$folder/output"
}

if [ "$mode" = functions ]; then
    callgrind "$2" "$many"
    # A function stands there once for each file that inlined code of it came from.
    callgrind_annotate --threshold=100 --auto=no --tree=none "$folder/profile" | awk '
        /^ *[0-9,]+ *\( *[0-9.]+%\)/ {
            line = $0
            sub(/^[^)]*\) */, "", line)
            if (line ~ /PROGRAM TOTALS/) { gsub(/,/, "", $1); total = $1; next }
            sub(/^[^:]*:/, "", line)
            sub(/ \[.*/, "", line)
            gsub(/,/, "", $1)
            cost[line] += $1
        }
        END { for (name in cost) printf "%5.1f %%  %s\n", 100 * cost[name] / total, name }' |
        sort -rn | sed 15q
    exit
fi

# Figures hold for one compiler, and for one kind of processor: httparse and memcpy pick code by it.
vectors=$(grep -m 1 -o -w -e avx2 /proc/cpuinfo || grep -m 1 -o -w -e sse4_2 /proc/cpuinfo || echo baseline)
key="$(rustc --version), $(rustc -vV | sed -n 's/^host: //p'), $vectors, bench profile"
# The recorded lines of this key: they stand below it, up to an empty line.
recorded=$(awk -v key="[$key]" '$0 == key { on = 1; next } /^$/ { on = 0 } on' "$records" 2>/dev/null || true)

echo "instructions per request ($key)"
printf '%-14s %10s %10s %9s\n' case counted recorded change
failed=
figures=
while read -r name; do
    first=$(count "$name" "$few")
    second=$(count "$name" "$many")
    figure=$(((second - first) / (many - few)))
    figures+="$name $figure"$'\n'
    before=$(awk -v name="$name" '$1 == name { print $2 }' <<<"$recorded")
    if [ -z "$before" ]; then
        printf '%-14s %10d %10s %9s\n' "$name" "$figure" - -
        continue
    fi
    change=$(awk -v now="$figure" -v before="$before" 'BEGIN { printf "%+.1f", 100 * (now / before - 1) }')
    printf '%-14s %10d %10d %7s %%\n' "$name" "$figure" "$before" "$change"
    if [ $((figure * 100)) -gt $((before * (100 + tolerance))) ]; then
        failed+="${failed:+; }$name takes $figure, recorded $before"
    fi
done < <("$program" --cases)
[ -n "$figures" ] || die 1 "$program lists no case"

if [ "$mode" = record ]; then
    {
        # All but what stands there for this key, and the empty lines behind it.
        awk -v key="[$key]" '$0 == key { off = 1; next } off && /^$/ { off = 0; next } !off' "$records" \
            2>/dev/null || echo "# Instructions per request, as counted by benches/instructions.sh --record."
        printf '\n[%s]\n%s' "$key" "$figures"
    } | cat -s >"$folder/records"
    cp "$folder/records" "$records"
    echo "recorded in $records"
elif [ -n "$failed" ]; then
    die 1 "over $tolerance % more than recorded: $failed"
elif [ -z "$recorded" ]; then
    echo "nothing is recorded for this compiler and processor; benches/instructions.sh --record does so"
fi
