"""Children of the client's own, where gevent's loop hears of them."""

from __future__ import annotations

import subprocess
import sys
import textwrap

SCRIPT = """
    import os
    import gevent
    from orbd import _ctl

    gevent.sleep(0)
    real = os.posix_spawnp

    def spawn(*args, **kwargs):
        pid = real(*args, **kwargs)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return pid

    os.posix_spawnp = spawn
    spawned = _ctl.Spawned(["sh", "-c", "exit 3"])
    print(spawned.wait(10))
    spawned.close()
"""


def test_a_child_that_ends_at_once() -> None:
    """It is heard of also when it has ended before anybody could watch it; before, it was waited for without end."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("3\n", "")
