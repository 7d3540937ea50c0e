"""What every test process needs, however the tests were started."""

import os
import signal

from hypothesis import HealthCheck, settings

# A run in the background (`make check &`, some CI) begins with Ctrl-C ignored, and every process started from it would
# inherit that; the tests of a clean end on Ctrl-C need the ordinary disposition.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What a person has set for the shell is not for the tests, nor for the processes that they start.
os.umask(0o022)
for name in list(os.environ):
    if name.startswith("LASTGOOD_") or name in {
        "FORCE_COLOR",
        "NO_COLOR",
        "COLUMNS",
        "TTY_COMPATIBLE",
        "TTY_INTERACTIVE",
    }:
        del os.environ[name]

# Tests assert behaviour, never wall time: a slow machine is no failure.
settings.register_profile("lastgood", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lastgood")
