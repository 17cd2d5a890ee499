#!/usr/bin/env python3
"""Servers side by side where the client never is the limit: the workloads of ../shared/bench, asked by
client.c instead of wrk. See benches/README.md, "Where the server is the limit"."""

import argparse
import contextlib
import json
import os
import platform
import re
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
BENCH = PROJECT.parent / "shared" / "bench"
if not BENCH.is_dir():
    sys.exit(f"{BENCH} is not there: it has the servers and the workloads that this compares")
sys.path.insert(0, str(BENCH))

import docroot  # noqa: E402
import measure  # noqa: E402
import servers  # noqa: E402
import workloads  # noqa: E402

SERVER_CPU, CLIENT_CPU = 0, 1
# Answers of these have a length that is known before.
WORKLOADS = ["tiny", "1k", "browser", "8k", "1k-c512", "64k", "many", "304", "404", "head", "range", "gzip",
             "mixed", "httparena"]
CALLS = "raw_syscalls:sys_enter"


def cpu_seconds(leader):
    """Of all its threads, by the scheduler's own count (proc(5), schedstat)."""
    total = 0
    for process in measure.tree(leader):
        for thread in Path(f"/proc/{process}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(thread.read_text().split()[0])
    return total / 1e9


def requests_file(workload, port, root, scratch):
    """Sees that a server answers rightly, and writes down what to ask and how long each answer is."""
    requests = measure.prepare(workload, port)
    measure.check(workload, requests, root, port)
    connection = measure.Connection(port)
    shares = [ask.share for ask in workload.asks()]
    text = struct.pack("=I", sum(shares))
    for request, share in zip(requests, shares):
        connection.send(request)
        answer = connection.answer(workload.method)[3]
        text += (struct.pack("=II", len(request), answer) + request) * share
    connection.close()
    path = scratch / f"{workload.name}-{port}"
    path.write_bytes(text)
    return path


def load(client, port, workload, path, seconds):
    command = ["taskset", "-c", str(CLIENT_CPU), client, port, workload.connections, seconds, path]
    said = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if said.returncode:
        raise measure.Invalid(said.stderr.strip())
    answers, took = said.stdout.split()
    return int(answers), float(took)


def calls_per_request(leader, body):
    """System calls per request, by perf; None where it cannot count them."""
    pids = ",".join(str(process) for process in measure.tree(leader))
    with tempfile.NamedTemporaryFile("r") as report:
        command = ["perf", "stat", "-x,", "-o", report.name, "-e", CALLS, "-p", pids]
        try:
            tool = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        except FileNotFoundError:
            return None
        answers, _ = measure._while_attached(tool, body)
        found = re.search(rf"^(\d+),.*{CALLS}", report.read(), re.MULTILINE)
    return int(found[1]) / answers if found else None


def compare(workload, launches, client, settings, scratch):
    rows = {}
    with contextlib.ExitStack() as stack:
        measure.fill_page_cache(workload, settings.root)
        running, files = {}, {}
        for name, launch in launches.items():
            if servers.can(name, workload):
                server = stack.enter_context(servers.Running(name, launch, settings.root, SERVER_CPU))
                try:
                    files[name] = requests_file(workload, server.port, settings.root, scratch)
                except measure.Invalid as error:
                    if name == "nginx" or name not in servers.PEERS:
                        raise
                    print(f"{workload.name}: {name} is left out: {error}", file=sys.stderr)
                    continue
                running[name] = server
                rows[name] = {"cpu_us": [], "req_per_s": []}
        names = list(running)
        for number in range(settings.rounds + 1):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                server, before = running[name], cpu_seconds(running[name].leader)
                answers, took = load(client, server.port, workload, files[name], settings.duration)
                if number:  # the first warms up
                    rows[name]["cpu_us"].append((cpu_seconds(server.leader) - before) * 1e6 / answers)
                    rows[name]["req_per_s"].append(answers / took)
        for name, server in running.items():
            rows[name]["calls"] = calls_per_request(
                server.leader, lambda: load(client, server.port, workload, files[name], settings.duration)
            )
    return rows


def markdown(results):
    lines = ["| workload | server | CPU us per request | to nginx | req/s | system calls per request |",
             "|---|---|---:|---:|---:|---:|"]
    for workload, rows in results.items():
        for name, row in rows.items():
            ratios = [own / other for own, other in zip(row["cpu_us"], rows["nginx"]["cpu_us"])]
            low, high = min(ratios), max(ratios)
            calls = "-" if row["calls"] is None else f"{row['calls']:.2f}"
            lines.append(
                f"| {workload} | {name} | {statistics.median(row['cpu_us']):.2f} "
                f"| {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f}) "
                f"| {statistics.median(row['req_per_s']):,.0f} | {calls} |"
            )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", default=",".join(WORKLOADS), metavar="A,B", help="default: %(default)s")
    parser.add_argument("--servers", default=",".join(servers.PEERS), metavar="A,B",
                        help="beside nginx; those not installed are left out (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=1, metavar="SECONDS")
    parser.add_argument("--root", type=Path, help="keep the files here (default: a temporary directory)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, of each round too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    settings = parser.parse_args()
    if unknown := set(settings.workloads.split(",")) - set(WORKLOADS):
        parser.error(f"no such workload: {', '.join(sorted(unknown))}")
    others = [name for name in settings.servers.split(",") if name]
    if unknown := set(others) - set(servers.PEERS):
        parser.error(f"no such server: {', '.join(sorted(unknown))}")
    for tool in "nginx", "cc", "taskset":
        if not shutil.which(tool):
            parser.error(f"{tool} is not on PATH: install it")
    program = PROJECT / "target/release/ringserve"
    if not program.exists():
        parser.error(f"{program} is not there: cargo build --release")
    options = "--workers 1 --root {root} --host 127.0.0.1 --port {port}"
    launches = {name: servers.PEERS[name] for name in dict.fromkeys(["nginx", *others])
                if servers.installed(name)}
    for engine in "uring", "epoll":
        launches[engine] = servers.subject(f"{program} --engine {engine} {options}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    os.sched_setaffinity(0, {CLIENT_CPU})
    results = {}
    with tempfile.TemporaryDirectory(prefix="saturate-") as scratch:
        scratch = Path(scratch)
        client = scratch / "client"
        subprocess.run(["cc", "-O2", "-o", client, HERE / "client.c"], check=True)
        settings.root = (settings.root or scratch / "root").resolve()
        docroot.build(settings.root, 1)
        for workload in workloads.WORKLOADS:
            if workload.name in settings.workloads.split(","):
                results[workload.name] = compare(workload, launches, client, settings, scratch)
                print(time.strftime("%H:%M:%S"), workload.name, file=sys.stderr)
    print(markdown(results), end="")
    if settings.json:
        about = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "kernel": platform.release(),
                 "rounds": settings.rounds, "duration": settings.duration}
        settings.json.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
    if settings.markdown:
        settings.markdown.write_text(markdown(results))


if __name__ == "__main__":
    try:
        main()
    except (measure.Invalid, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"run.py: {error}")
