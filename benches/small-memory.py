#!/usr/bin/env python3
"""Servers side by side in a container with less memory than the site has bytes: what is asked for at random
must come from the disk again and again. See benches/README.md, "A container with little memory". Needs root."""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent.parent / "shared" / "bench"
if not BENCH.is_dir():
    sys.exit(f"{BENCH} is not there: it has the servers and the files that this compares")
sys.path[:0] = [str(BENCH), str(Path(__file__).resolve().parent / "support")]

import docroot  # noqa: E402
import groups  # noqa: E402
import measure  # noqa: E402
import servers  # noqa: E402
import workloads  # noqa: E402

SERVER_CPU, CLIENT_CPU = 0, 1
WORKLOAD = next(workload for workload in workloads.WORKLOADS if workload.name == "many")
NAME = "ringserve-small-memory"


def round_of(name, launch, settings):
    # What is in the page cache was charged to whoever had it read.
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    with (
        groups.little_memory(NAME, settings.memory << 20) as inside,
        servers.Running(name, inside(launch), settings.root, SERVER_CPU) as server,
    ):
        requests = measure.prepare(WORKLOAD, server.port)
        ask = lambda seconds: measure.wrk(WORKLOAD, requests, server.port, seconds, CLIENT_CPU)  # noqa: E731
        ask(settings.warm)
        before = measure.cpu_seconds(server.leader)
        said = ask(settings.duration)
        took = measure.cpu_seconds(server.leader) - before
        if not server.alive():
            raise measure.Invalid(f"{name} has ended: {settings.memory} MB may be too little for it")
    if errors := {kind: count for kind, count in said["errors"].items() if count}:
        raise measure.Invalid(f"{name}: {errors}")
    answers = said["requests"]
    return {
        "req_per_s": answers / said["seconds"],
        "cpu_us": took * 1e6 / answers,
        "p50_ms": said["p50_us"] / 1e3,
        "p99_ms": said["p99_us"] / 1e3,
    }


def markdown(rows):
    lines = ["| server | req/s | CPU us per request | p50 ms | p99 ms |", "|---|---:|---:|---:|---:|"]
    for name, rounds in rows.items():
        column = lambda key: sorted(figures[key] for figures in rounds)  # noqa: E731
        cells = [
            f"{statistics.median(column(key)):{form}} ({column(key)[0]:{form}} to {column(key)[-1]:{form}})"
            for key, form in (("req_per_s", ",.0f"), ("cpu_us", ".1f"), ("p50_ms", ".1f"), ("p99_ms", ".1f"))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)

    def whole(text):
        return int(text) if re.fullmatch("[1-9][0-9]*", text) else parser.error(f"{text}: not a whole number from 1 on")

    parser.add_argument("--memory", type=whole, default=128, metavar="MB", help="default: %(default)s")
    parser.add_argument("--rounds", type=whole, default=5, help="default: %(default)s")
    parser.add_argument("--warm", type=whole, default=3, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--duration", type=whole, default=4, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--servers", default=",".join(servers.PEERS), metavar="A,B", help="default: %(default)s")
    parser.add_argument("--subject", action="append", default=[], type=servers.named_subject, metavar="NAME=COMMAND", help="as in bench.py")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="where the files are made; on a disk")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, of each round too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    settings = parser.parse_args()
    if os.geteuid():
        parser.error("to limit a server's memory takes root")
    for tool in "wrk", "taskset":
        if not shutil.which(tool):
            parser.error(f"{tool} is not on PATH: install it")
    settings.launches = {}
    for name in filter(None, settings.servers.split(",")):
        if name not in servers.PEERS or not servers.installed(name):
            parser.error(f"{name}: no such server, or not installed")
        if servers.can(name, WORKLOAD):
            settings.launches[name] = servers.PEERS[name]
    settings.launches.update(settings.subject)
    if not settings.launches:
        parser.error("nobody to measure: name a server with --servers or --subject")
    return settings


def main():
    settings = arguments()
    os.sched_setaffinity(0, {CLIENT_CPU})
    rows = {name: [] for name in settings.launches}
    with tempfile.TemporaryDirectory(prefix="small-memory-", dir=settings.folder) as root:
        settings.root = Path(root)
        settings.root.chmod(0o755)
        docroot.build(settings.root, 1)
        names = list(rows)
        for number in range(settings.rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                rows[name].append(round_of(name, settings.launches[name], settings))
                print(time.strftime("%H:%M:%S"), f"round {number + 1}", name, rows[name][-1], file=sys.stderr)
    print(markdown(rows), end="")
    if settings.json:
        about = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "kernel": platform.release(),
                 "memory_mb": settings.memory, "rounds": settings.rounds, "duration": settings.duration}
        settings.json.write_text(json.dumps({"about": about, "results": rows}, indent=1) + "\n")
    if settings.markdown:
        settings.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    try:
        main()
    except (measure.Invalid, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"small-memory.py: {error}")
