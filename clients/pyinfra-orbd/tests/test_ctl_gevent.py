"""Children of the client in a process with a gevent loop."""

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
    child = _ctl.ChildProcess(["sh", "-c", "exit 3"])
    print(child.wait(10))
    child.close()
"""


def test_exit_code_of_a_child_that_exits_immediately_is_known() -> None:
    """Regression: the wait never ended if the child exited before it could be watched."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("3\n", "")
