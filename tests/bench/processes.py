"""What Linux says of processes and connections: CPU seconds, resident memory, children, bytes over TCP.

It starts and ends nothing.
"""

import os
import platform
import socket
import struct
from pathlib import Path
from typing import Final

HEARTBEAT_S: Final = 3_600  # of every cloud that is measured: nobody says what is not asked for
_TICKS_S: Final = os.sysconf("SC_CLK_TCK")
_TCP_INFO_BYTES: Final = 256
_ACKED_AND_RECEIVED: Final = 120  # offset of two 64-bit counters in struct tcp_info (Linux 4.1 and newer)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds, of user and system, that a process has used."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_S


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1_024
    raise ProcessLookupError(f"the process {pid} has no memory any more")


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if int(_stat(int(folder.name))[1]) == pid:
                    found.append(int(folder.name))
            except OSError:
                continue  # it ended while we looked
    return found


def broker_of(cloud: int) -> int:
    """Return the process that serves as broker: below the cloud, and below the small one that ends mosquitto."""
    pid = cloud
    while below := children(pid):
        pid = below[0]
    if pid == cloud:
        raise ProcessLookupError("the cloud has no broker of its own")
    return pid


def bytes_to(port: int) -> dict[int, int]:
    """Return, for each connection of this process to a port, the bytes that TCP carried both ways, by its own port."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not entry.readlink().name.startswith("socket:"):
                continue  # only a socket's copy has somebody who closes it
            connection = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:
            continue  # it was closed while we looked
        with connection:
            try:
                peer, own = connection.getpeername(), connection.getsockname()
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            except OSError:
                continue
            if isinstance(peer, tuple) and peer[1] == port:
                found[own[1]] = sum(struct.unpack_from("QQ", info, _ACKED_AND_RECEIVED))
    return found


def machine() -> str:
    """Return in general terms what this machine is."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return (
        f"{platform.machine()}, {cores} cores, {memory_gib:.0f} GiB, "
        f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}"
    )


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
