"""The record of a running broker in its folder, and the end of one that a killed cloud left behind.

The rule it keeps: only a process whose command line names this folder's own configuration file is ended,
so a process id that the kernel has given to somebody else since is never touched.
"""

import contextlib
import json
import os
import select
import signal
from collections.abc import Sequence
from pathlib import Path

from cloud_stub.adapters.durable import replace_file

_RECORD = "broker.json"
_GRACE_S = 3.0  # from SIGTERM to SIGKILL


def write_record(folder: Path, pids: Sequence[int], config: Path, service_port: int) -> None:
    """Record a started broker, durably."""
    record = {"pids": list(pids), "config": str(config), "service_port": service_port}
    replace_file(folder / _RECORD, (json.dumps(record) + "\n").encode())


def forget_record(folder: Path) -> None:
    """Take the process ids out of the record, and leave the port."""
    port = last_service_port(folder)
    replace_file(
        folder / _RECORD, (json.dumps({"pids": [], "config": "", "service_port": port}) + "\n").encode()
    )


def last_service_port(folder: Path) -> int | None:
    """The service port of the last broker here, so that the next one can have it again and inspectors find
    it."""
    port = _read(folder).get("service_port")
    return port if isinstance(port, int) and 0 < port < 65_536 else None


def end_stale(folder: Path) -> list[int]:
    """End the broker of a previous run in this folder, if it still lives; the ids of the processes that
    were ended."""
    record = _read(folder)
    config, pids = record.get("config"), record.get("pids")
    if not isinstance(config, str) or not config or not isinstance(pids, list):
        return []
    return [pid for pid in pids if isinstance(pid, int) and _is_ours(pid, config) and _end(pid)]


def _read(folder: Path) -> dict[str, object]:
    try:
        record = json.loads((folder / _RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_ours(pid: int, config: str) -> bool:
    try:
        return config.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _end(pid: int) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        for number, wait_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GRACE_S)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            if select.select([handle], [], [], wait_s)[0]:
                return True
    finally:
        os.close(handle)
    return True
