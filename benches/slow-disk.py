#!/usr/bin/env python3
"""What a slow disk with a short queue does to other clients: many ask for a large file each that is not in
memory, one for a small one that is. See benches/README.md, "A slow disk". Needs root."""

import argparse
import contextlib
import functools
import http.client
import json
import multiprocessing
import os
import platform
import re
import resource
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

BENCH = Path(__file__).resolve().parent.parent.parent / "shared" / "bench"
if not BENCH.is_dir():
    sys.exit(f"{BENCH} is not there: it has the servers that this compares")
sys.path[:0] = [str(BENCH), str(Path(__file__).resolve().parent / "support")]

import groups  # noqa: E402
import measure  # noqa: E402
import servers  # noqa: E402

SERVER_CPU, CLIENT_CPU = 0, 1
END_OF_HEAD = b"\r\n\r\n"
HOT, CONTENT = "hot.html", b"a small file in memory\n"
# Seconds between two questions of the hot client; and for which a server may answer from what it last saw.
PERIOD, FRESH = 0.002, 1.2
# Seconds after which an answer is not waited for any more.
PATIENCE = 120
# Seconds until a server with little memory has had to take it from what was there.
SETTLED = 4
NAME = "ringserve-slow-disk"
PEERS = {**servers.PEERS, "nginx-threads": functools.partial(servers.nginx, tuning="aio threads;")}


def run(*command):
    said = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if said.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {said.stderr.strip()}")
    return said.stdout.strip()


def disk_of(folder):
    """The number of the whole disk that a folder lies on."""
    number = os.stat(folder).st_dev
    place = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not place.exists():
        sys.exit(f"{folder} does not lie on a disk itself: name a folder that does with --folder")
    return ((place.resolve().parent if (place / "partition").exists() else place) / "dev").read_text().strip()


@contextlib.contextmanager
def control_group(disk, rate):
    """A control group that reads from a disk at so many bytes per second: a function that puts processes in."""
    if (groups.CGROUPS / "cgroup.controllers").exists():
        (groups.CGROUPS / "cgroup.subtree_control").write_text("+io")
        group, limit = groups.CGROUPS / NAME, ("io.max", f"{disk} rbps={rate}", f"{disk} rbps=max")
    else:
        group = groups.CGROUPS / "blkio" / NAME
        limit = ("blkio.throttle.read_bps_device", f"{disk} {rate}", f"{disk} 0")
    file, slow, quick = limit
    with groups.made(group):
        (group / file).write_text(slow)
        try:
            yield lambda process: (group / "cgroup.procs").write_text(str(process))
        finally:
            # What has been asked for comes before anything can be put away.
            (group / file).write_text(quick)


def small(megabytes):
    """A control group with so much memory, if that is little: a function that has a server start in it."""
    if megabytes:
        return groups.little_memory(NAME, megabytes << 20)
    return contextlib.nullcontext(lambda launch: launch)


@contextlib.contextmanager
def disk(image, settings):
    """A disk of its own, in a file, with the files to be asked for."""
    with tempfile.TemporaryDirectory(prefix="slow-disk-") as place:
        os.chmod(place, 0o755)
        device = run("losetup", "--find", "--show", image)
        queue = Path("/sys/block") / Path(device).name / "queue"
        try:
            (queue / "read_ahead_kb").write_text(str(settings.read_ahead))
            (queue / "nr_requests").write_text(str(settings.queue))
            run("mount", device, place)
            try:
                yield Path(place)
            finally:
                for _ in range(100):
                    if subprocess.run(["umount", place], capture_output=True).returncode == 0:
                        break
                    time.sleep(0.1)
        finally:
            run("losetup", "--detach", device)


def build(image, settings):
    bytes_per_file = settings.size << 10
    with open(image, "wb") as file:
        file.truncate(settings.files * bytes_per_file * 5 // 4 + (64 << 20))
    run("mkfs.ext4", "-q", "-F", image)
    with disk(image, settings) as root:
        (root / HOT).write_bytes(CONTENT)
        for number in range(settings.files):
            (root / str(number)).write_bytes(os.urandom(bytes_per_file))
        os.sync()


def request(path):
    return f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def ask(connection):
    connection.sendall(request(HOT))
    answer = b""
    while not answer.endswith(CONTENT):
        try:
            piece = connection.recv(65536)
        except TimeoutError:
            sys.exit(f"the hot client was not answered in {PATIENCE} seconds")
        answer += piece
        if not piece:
            raise ConnectionError
        if not answer.startswith(b"HTTP/1.1 200"):
            sys.exit(f"the hot client was answered {answer[:80]!r}")


def connect(server):
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.settimeout(PATIENCE)
    return connection


def ask_before(server, settings):
    """Each file, some seconds after it was made: until then nothing is known of it for sure."""
    time.sleep(3)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    for number in range(settings.files):
        connection.request("GET", f"/{number}")
        connection.getresponse().read()
    connection.close()


def take(port, settings, told):
    """Asks for a file as each client, until told to stop, and tells how many bytes have come. Where the server
    has little memory each then asks for another, at random."""
    taken, random = 0, Random(1)
    with selectors.DefaultSelector() as sockets:
        sockets.register(told, selectors.EVENT_READ)
        for number in range(settings.clients):
            with contextlib.suppress(OSError):
                client = socket.create_connection(("127.0.0.1", port), PATIENCE)
                client.sendall(request(number % settings.files))
                client.setblocking(False)
                sockets.register(client, selectors.EVENT_READ, bytearray())
        while True:
            for key, _ in sockets.select():
                if key.fileobj is told:
                    told.send(taken)
                    return
                try:
                    piece = key.fileobj.recv(1 << 20)
                except OSError:
                    piece = b""
                taken += len(piece)
                if not piece:
                    sockets.unregister(key.fileobj)
                    key.fileobj.close()
                elif settings.memory:
                    answer = key.data
                    answer += piece
                    if len(answer) - answer.find(END_OF_HEAD) - len(END_OF_HEAD) == settings.size << 10:
                        answer.clear()
                        key.fileobj.sendall(request(random.randrange(settings.files)))


@contextlib.contextmanager
def others(port, settings):
    """They ask in a process of their own, in which nobody's time is taken: a function that stops them."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=take, args=(port, settings, theirs))
    process.start()

    def stop():
        ours.send(None)
        return ours.recv()

    try:
        yield stop
    finally:
        process.kill()
        process.join()


def round_of(name, launch, image, settings):
    """The hot client's times, in ms, and MB per second of all the others."""
    # What is in the page cache, the server's program too, was charged to whoever had it read.
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    with (
        disk(image, settings) as root,
        control_group(settings.disk, settings.rate << 20) as put_in,
        small(settings.memory) as inside,
        servers.Running(name, inside(launch), root, SERVER_CPU) as server,
    ):
        if settings.asked_before:
            ask_before(server, settings)
        for process in measure.tree(server.leader):
            put_in(process)
        hot = connect(server)
        ask(hot)
        Path("/proc/sys/vm/drop_caches").write_text("3")
        # The names stay known, and what is hot does: it is files that have to be waited for. Where memory is
        # short they do not.
        for number in range(0 if settings.memory else settings.files):
            os.stat(root / str(number))
        Path("/proc/sys/vm/drop_caches").write_text("1")
        for _ in range(2):
            time.sleep(FRESH)
            ask(hot)
        with others(server.port, settings) as stop:
            since = time.monotonic()
            time.sleep(SETTLED if settings.memory else 0)
            times, cut_off, began = [], 0, time.monotonic()
            while time.monotonic() < began + settings.seconds:
                asked = time.perf_counter()
                try:
                    ask(hot)
                except ConnectionError:
                    cut_off += 1
                    hot = connect(server)
                times.append((time.perf_counter() - asked) * 1e3)
                time.sleep(PERIOD)
            rate = stop() / (time.monotonic() - since) / 1e6
        hot.close()
    times.sort()
    place = lambda share: times[min(len(times) - 1, int(len(times) * share))]  # noqa: E731
    return {"p50": place(0.5), "p99": place(0.99), "max": times[-1], "answers": len(times), "cut_off": cut_off, "cold_mb_s": rate}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    whole = lambda text: int(text) if re.fullmatch("[1-9][0-9]*", text) else parser.error(f"{text}: a whole number from 1 on is wanted")  # noqa: E731
    parser.add_argument("--servers", default="nginx,nginx-threads", metavar="A,B", help=f"of {','.join(PEERS)}; '' for none")
    parser.add_argument("--subject", action="append", default=[], type=servers.named_subject, metavar="NAME=COMMAND", help="as in bench.py")
    parser.add_argument("--rounds", type=whole, default=3)
    parser.add_argument("--clients", type=whole, default=300, help="who ask for a file each (default: 300)")
    parser.add_argument("--memory", type=whole, metavar="MB", help="the server has no more, and each client then asks for another file, at random")
    parser.add_argument("--files", type=whole, help="how many there are (default: one for each client)")
    parser.add_argument("--size", type=whole, default=2048, help="KiB of each file (default: 2048)")
    parser.add_argument("--rate", type=whole, default=10, help="MiB the disk gives in a second (default: 10)")
    parser.add_argument("--queue", type=whole, default=64, help="requests the disk's queue takes (default: 64)")
    parser.add_argument("--read-ahead", type=whole, default=128, help="KiB the kernel reads ahead (default: 128)")
    parser.add_argument("--seconds", type=whole, default=10, help="of a round (default: 10)")
    parser.add_argument("--asked-before", action="store_true", help="each file was asked for before, and has gone from memory")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="on a disk; for the image (default: /var/tmp)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    settings.files = settings.files or settings.clients
    names = [name for name in settings.servers.split(",") if name]
    if unknown := set(names) - set(PEERS):
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(PEERS)}")
    settings.launches = {name: PEERS[name] for name in names if servers.installed(name.removesuffix("-threads"))}
    settings.launches.update(settings.subject)
    if not settings.launches:
        parser.error("nobody to measure: name a server with --servers or --subject")
    return settings


def main():
    settings = arguments()
    if os.geteuid() != 0:
        sys.exit("this makes a disk and slows it down, which only root may")
    if not settings.folder.is_dir():
        sys.exit(f"{settings.folder}: no such folder; name one on a disk with --folder")
    settings.disk = disk_of(settings.folder)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.sched_setaffinity(0, {CLIENT_CPU})
    # What was made for this is put away whatever ends it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    rounds = {name: [] for name in settings.launches}
    with tempfile.TemporaryDirectory(prefix="slow-disk-", dir=settings.folder) as folder:
        image = Path(folder) / "image"
        build(image, settings)
        for _ in range(settings.rounds):
            for name, launch in settings.launches.items():
                row = round_of(name, launch, image, settings)
                print(f"{name}: p50 {row['p50']:.2f}, p99 {row['p99']:.2f}, longest {row['max']:,.1f} ms" + (f", cut off {row['cut_off']} times" if row["cut_off"] else ""), file=sys.stderr)
                rounds[name].append(row)
    print("| server | a hot file: p50 / p99 / max ms | longest wait of each round, ms | cold MB/s |")
    print("|---|---:|---:|---:|")
    for name, rows in rounds.items():
        middle = lambda key: statistics.median(row[key] for row in rows)  # noqa: E731
        longest = ", ".join(f"{row['max']:,.1f}" for row in rows)
        print(f"| {name} | {middle('p50'):,.2f} / {middle('p99'):,.2f} / {middle('max'):,.1f} | {longest} | {middle('cold_mb_s'):.1f} |")
    if settings.json:
        keys = ("rounds", "clients", "files", "memory", "size", "rate", "queue", "read_ahead", "seconds")
        about = {"kernel": platform.release(), **{key: getattr(settings, key) for key in keys}}
        settings.json.write_text(json.dumps({"about": about, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
