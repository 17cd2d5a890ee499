"""Control groups that a benchmark makes for itself."""

import contextlib
import time
from pathlib import Path

import servers

CGROUPS = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def made(group):
    """A group that is put away again, once those in it have gone."""
    group.mkdir(exist_ok=True)
    try:
        yield group
    finally:
        for _ in range(100):
            with contextlib.suppress(OSError):
                group.rmdir()
            if not group.exists():
                break
            time.sleep(0.1)


@contextlib.contextmanager
def little_memory(name, limit):
    """A group with so many bytes of memory, and no swap: a function that has a server start in it."""
    if (CGROUPS / "cgroup.controllers").exists():
        (CGROUPS / "cgroup.subtree_control").write_text("+memory")
        group, limits = CGROUPS / name, ("memory.max", "memory.swap.max")
    else:
        group, limits = CGROUPS / "memory" / name, ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")

    def inside(launch):
        def launch_inside(root, port, scratch):
            outside = launch(root, port, scratch)
            join = f'echo $$ >{group}/cgroup.procs && exec "$@"'
            return servers.Launch(["sh", "-c", join, "sh", *map(str, outside.argv)], outside.env)

        return launch_inside

    with made(group):
        memory, swap = (group / name for name in limits)
        memory.write_text(str(limit))
        if swap.exists():
            swap.write_text("0" if swap.name == "memory.swap.max" else str(limit))
        yield inside
