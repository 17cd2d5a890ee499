"""Control groups that a benchmark makes for itself."""

import contextlib
import time


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
                break
            time.sleep(0.1)
