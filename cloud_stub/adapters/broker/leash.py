"""Runs one command that must not outlive whoever started it: `python leash.py watch|free CONFIG --
COMMAND...`.

mosquitto knows nothing of its parent. PR_SET_PDEATHSIG set by the cloud itself would not do: the kernel sends
it when the *thread* that started the child ends, and setting it needs code between fork and exec, which is
unsafe in a process with threads. So this small process, which has one thread, stands between: it ends the
command when its standard input closes (the cloud died, however), and the kernel ends the command when this
process dies.

It prints the command's process id in one line. CONFIG is there to be seen in /proc by `stale.py`. Standard
library only.
"""

import ctypes
import os
import resource
import select
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1
_GRACE_S = 3.0  # from SIGTERM to SIGKILL


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    watch, command = arguments[0] == "watch", arguments[3:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a connection each
    libc = ctypes.CDLL(None)
    mine = os.getpid()

    def tie() -> None:
        libc.prctl(
            _PR_SET_PDEATHSIG, signal.SIGKILL
        )  # nobody would be left to follow up; it keeps nothing on disk
        if os.getppid() != mine:  # died before the line above
            os._exit(1)

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, preexec_fn=tie)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    sys.stdout.write(f"{child.pid}\n")
    sys.stdout.flush()
    if watch:
        _wait_for_either(child.pid)
        child.terminate()
    try:
        return child.wait(_GRACE_S if watch else None)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _wait_for_either(pid: int) -> None:
    """Return when standard input has closed or the child has ended."""
    ended = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(ended, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if ended in ready or (0 in ready and not os.read(0, 4096)):
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
