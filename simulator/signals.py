"""How this process ends with all that it started: signals that act as Ctrl-C does, and moments that none may tear."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Final

ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_like_ctrl_c() -> None:
    """Let SIGTERM, and a terminal that goes away, end this process as Ctrl-C does: with everything that it started."""
    for number in _heard() - {signal.SIGINT}:
        signal.signal(number, signal.default_int_handler)


def _heard() -> set[signal.Signals]:
    """Return the signals that end this process; `nohup`, and a shell's `&`, ask to ignore one."""
    return {number for number in ENDING_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and its likes wait until the block has ended: a process that is started must also be noted."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python tells signals to its main thread alone
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda each, _: came.append(each)) for number in _heard()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for first in came[:1]:
            signal.raise_signal(first)
