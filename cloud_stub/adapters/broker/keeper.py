"""Keeps a broker of ours running: notices that it has ended by itself, says so, and starts it again; bounds its log.

It knows nothing of MQTT, and never touches a broker that somebody else runs. The rule kept: the broker comes back on
the same ports with the newest accounts, so that cloud and devices only have to reconnect.
"""

import threading
from collections.abc import Callable
from typing import Final

from cloud_stub.adapters.broker.process import BrokerProcess
from protocol.errors import ServiceError
from protocol.join import broker_url

LOOK_EVERY_S: Final = 0.5  # devices wait longer than this before they reconnect
WAIT_MOST_S: Final = 30.0  # between two starts of a broker that will not stay


class Keeper:
    """Looks after one broker from `start` until `stop`, in a thread of its own."""

    def __init__(self, broker: BrokerProcess, say: Callable[[str], None]) -> None:
        self._broker = broker
        self._say = say
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="broker-keeper", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; the broker may be ended after this, and stays ended."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        wait_s = LOOK_EVERY_S
        while not self._stopping.wait(wait_s):
            if self._broker.alive():
                self._broker.bound_log()
                wait_s = max(LOOK_EVERY_S, wait_s / 2)  # it has to stay a while to be trusted again
                continue
            wait_s = min(WAIT_MOST_S, 2 * wait_s)
            self._revive()

    def _revive(self) -> None:
        broker = self._broker
        self._say(
            f"the broker {broker.engine} has ended by itself ({broker.last_words()}); starting it again"
        )
        try:
            broker.start_again()
        except ServiceError as error:  # a broker that does not come up, or a disk that refuses its files
            self._say(f"it does not start: {error}; trying again")
        else:
            self._say(f"the broker serves again on {broker_url(broker.host, broker.port)}")
