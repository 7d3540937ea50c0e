"""The embedded broker's own process: `python -m cloud_stub.adapters.broker.embedded CONFIG.json`.

It is started by `start.py` and nobody else. It reads its accounts at start and at SIGHUP, ends at SIGTERM,
and ends by itself when its standard input closes, which happens when whoever started it has died, however
that came about.
"""

import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud_stub.adapters.broker.accounts import read_accounts
from cloud_stub.adapters.broker.errors import BrokerError
from cloud_stub.adapters.broker.exchange import Exchange
from cloud_stub.adapters.broker.hardened import HardenedBroker
from cloud_stub.adapters.broker.limits import Limits

_log = logging.getLogger("broker")


@dataclass(frozen=True)
class EmbeddedConfig:
    """What the process is told in its configuration file."""

    host: str
    port: int
    accounts: Path
    prefix: str
    watch_parent: bool
    limits: Limits


def main(arguments: list[str]) -> int:
    """Serve until told to stop. Returns the exit code: 0, or 1 with one line on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        config = read_config(Path(arguments[0]))
        _raise_open_files()
        asyncio.run(serve(config))
    except (BrokerError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def read_config(path: Path) -> EmbeddedConfig:
    """Read the configuration file. Raises BrokerError."""
    try:
        raw: Mapping[str, Any] = json.loads(path.read_text())
        limits = Limits(**raw["limits"])
        accounts, watch = Path(raw["accounts"]), bool(raw["watch_parent"])
        return EmbeddedConfig(raw["host"], int(raw["port"]), accounts, raw["prefix"], watch, limits)
    except (KeyError, TypeError, ValueError) as error:
        raise BrokerError(f"{path} does not configure the embedded broker: {error!r}") from error


async def serve(config: EmbeddedConfig) -> None:
    """Run the broker until SIGTERM, SIGINT, or the parent's end. Raises BrokerError when it cannot start."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    exchange = Exchange(loop, config.prefix, config.limits)
    exchange.set_accounts(read_accounts(config.accounts))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, exchange, config.accounts)
    if config.watch_parent:
        loop.add_reader(0, _end_with_parent, stopped)
    broker = HardenedBroker(exchange, config.host, config.port)
    try:
        await broker.start()
    except Exception as error:  # amqtt's own BrokerError, around whatever went wrong
        raise BrokerError(str(error)) from error
    # A full collection walks every connection: 10,000 of them cost it 15-20 % of the time, and leave no cycles behind
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
    await _sweep_until(stopped, exchange)
    exchange.close()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(broker.shutdown(), timeout=2)


async def _sweep_until(stopped: asyncio.Event, exchange: Exchange) -> None:
    while not stopped.is_set():
        try:
            await asyncio.wait_for(stopped.wait(), exchange.limits.sweep_s)
        except TimeoutError:
            exchange.tick()


def _end_with_parent(stopped: asyncio.Event) -> None:
    if not os.read(0, 4096):
        stopped.set()


def _reload(exchange: Exchange, path: Path) -> None:
    try:
        exchange.set_accounts(read_accounts(path))
    except (BrokerError, OSError) as error:
        _log.warning("accounts not read again, the old ones stay: %s", error)


def _raise_open_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
