"""What every test process needs, however the tests were started."""

import signal

# A run in the background (`make check &`, some CI) begins with Ctrl-C ignored, and every process started from it would
# inherit that; the tests of a clean end on Ctrl-C need the ordinary disposition.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
