"""Chooses and starts the cloud's broker: the given one, else mosquitto, else the embedded amqtt.

It keeps DESIGN.md, section 4: whatever serves, it is on loopback, never anonymous, ends with its parent,
and is named to the operator with its limit; when mosquitto does not come up, its reason is said before the
other serves.
"""

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from cloud_stub.adapters.broker.access import check_names
from cloud_stub.adapters.broker.errors import BrokerError
from cloud_stub.adapters.broker.external import ExternalBroker, external_broker
from cloud_stub.adapters.broker.limits import Limits
from cloud_stub.adapters.broker.mosquitto import (
    INSTALL,
    LIMIT,
    find_mosquitto,
    mosquitto_version,
    write_files,
)
from cloud_stub.adapters.broker.process import BrokerProcess, Plan
from cloud_stub.adapters.broker.stale import end_stale, last_service_port
from cloud_stub.adapters.durable import replace_file
from protocol.topics import check_prefix

HOST = "127.0.0.1"
EMBEDDED_LIMIT = (
    "one Python process for demonstrations and small fleets; MQTT 3.1.1 only; mosquitto bears more"
)
MOSQUITTO_START_S = 3.0
"""After that mosquitto is given up and the embedded broker serves."""

ONLY_CHOICE_START_S = 60.0
"""For a broker in whose place no other would serve: a busy machine may take its time."""

PORT_TRIES = 5
"""A port that was free a moment ago can be taken by another process before the broker binds it."""


def start_broker(
    choice: str,
    folder: Path,
    *,
    accounts: Mapping[str, str],
    prefix: str = "lg/v1",
    port: int | None = None,
    say: Callable[[str], None],
    survive: bool = False,
    mosquitto: str | None = None,
    limits: Limits | None = None,
) -> BrokerProcess | ExternalBroker:
    """Start the broker of an operator's choice: "auto", "mosquitto", "embedded", or mqtt://host:port.

    `folder` holds its files and belongs to one running cloud alone: a broker left there by a killed one is
    ended. `port` None takes a free one. `survive` lets the broker outlive its parent. `mosquitto` names
    the binary to run, and `limits` are for the embedded broker. Raises BrokerError, whose sentence says
    what to do.
    """
    check_prefix(prefix)
    check_names(accounts)
    folder = folder.resolve()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BrokerError(f"cannot make the broker's folder {folder}: {error.strerror}") from error
    if stale := end_stale(folder):
        say(f"ended the broker of an earlier run (process {', '.join(map(str, stale))})")
    if "://" in choice:
        return external_broker(choice, folder, accounts, prefix)
    if choice not in ("auto", "mosquitto", "embedded"):
        raise BrokerError(f"unknown broker {choice!r}: take auto, mosquitto, embedded, or mqtt://host:port")
    if port is not None:
        _check_port(port)
    if choice != "embedded":
        try:
            start_s = ONLY_CHOICE_START_S if choice == "mosquitto" else MOSQUITTO_START_S
            return _start_mosquitto(folder, accounts, prefix, port, survive, mosquitto, start_s)
        except BrokerError as error:
            if choice == "mosquitto":
                raise
            say(f"mosquitto does not serve: {error}")
    return _start_embedded(folder, accounts, prefix, port, survive, limits or Limits())


def _check_port(port: int) -> None:
    """Say in one sentence what two engines would each say in their own, and after their time to start."""
    with socket.socket() as candidate:
        # The broker of a run that ended a moment ago is no hindrance.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError as error:
            raise BrokerError(
                f"the broker's port {port} on {HOST} cannot be used: {error.strerror}; end what listens there, or "
                "choose another with --broker-port"
            ) from error


def free_port(*taken: int) -> int:
    """A TCP port of loopback that nobody listens on at this moment."""
    while True:
        with socket.socket() as candidate:
            candidate.bind((HOST, 0))
            port: int = candidate.getsockname()[1]
        if port not in taken:
            return port


def _start_mosquitto(
    folder: Path,
    accounts: Mapping[str, str],
    prefix: str,
    port: int | None,
    survive: bool,
    asked: str | None,
    start_s: float,
) -> BrokerProcess:
    binary = find_mosquitto(asked)
    if binary is None:
        raise BrokerError(f"mosquitto was not found on PATH or in /usr/sbin; {INSTALL}")
    version = mosquitto_version(binary, start_s)

    def plan(at: int) -> Plan:
        service_port = _service_port(folder, at)
        files = write_files(folder, prefix, HOST, at, service_port)
        leash = [
            sys.executable,
            "-IS",
            str(Path(__file__).with_name("leash.py")),
            "free" if survive else "watch",
        ]
        return Plan(
            engine=f"mosquitto {version}",
            limit=LIMIT,
            command=[*leash, str(files.config), "--", str(binary), "-c", str(files.config)],
            leashed=True,
            folder=folder,
            config=files.config,
            host=HOST,
            port=at,
            service_port=service_port,
            files={files.device_accounts: False, files.service_accounts: True},
            shared_file=False,
            start_s=start_s,
            survive=survive,
        )

    return _start(plan, accounts, port)


def _start_embedded(
    folder: Path, accounts: Mapping[str, str], prefix: str, port: int | None, survive: bool, limits: Limits
) -> BrokerProcess:
    try:
        version = metadata.version("amqtt")
    except metadata.PackageNotFoundError as error:
        raise BrokerError(
            f"the embedded broker needs the package amqtt: `pip install 'lastgood[cloud]'`; or {INSTALL}"
        ) from error
    config, shared = folder / "embedded.json", folder / "embedded.passwd"

    def plan(at: int) -> Plan:
        told = {
            "host": HOST,
            "port": at,
            "accounts": str(shared),
            "prefix": prefix,
            "watch_parent": not survive,
            "limits": asdict(limits),
        }
        replace_file(config, (json.dumps(told, indent=1) + "\n").encode())
        return Plan(
            engine=f"amqtt {version} (embedded)",
            limit=EMBEDDED_LIMIT,
            command=[sys.executable, "-m", "cloud_stub.adapters.broker.embedded", str(config)],
            leashed=False,
            folder=folder,
            config=config,
            host=HOST,
            port=at,
            service_port=at,
            files={shared: True},
            shared_file=True,
            start_s=ONLY_CHOICE_START_S,
            survive=survive,
            environment={"PYTHONPATH": _python_path()},
        )

    return _start(plan, accounts, port)


def _python_path() -> str:
    """Where the child finds this package, from a checkout as well, whatever its working folder is."""
    root = str(Path(__file__).resolve().parents[3])
    return os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))


def _start(plan: Callable[[int], Plan], accounts: Mapping[str, str], port: int | None) -> BrokerProcess:
    for left in reversed(range(PORT_TRIES)):
        broker = BrokerProcess(plan(port if port is not None else free_port()))
        try:
            broker.start(accounts)
            return broker
        except BrokerError as error:
            if port is not None or not left or "in use" not in str(error):
                raise
    raise AssertionError("unreachable: the last try returns or raises")


def _service_port(folder: Path, device_port: int) -> int:
    last = last_service_port(folder)
    if last is not None and last != device_port:
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((HOST, last))
                return last
            except OSError:
                pass
    return free_port(device_port)
