"""The limits of the embedded broker, with unit and reason; each can be set in its configuration file.

mosquitto has its own, in `mosquitto.py`. The rule kept: nothing that a client does makes the broker's
memory grow without a bound that stands here.
"""

from dataclasses import dataclass

PACKET_BYTES_MAX = 262_144
"""The largest packet, for both engines: far above any message of the protocol, and 1,000 of them fit in
memory."""

LISTEN_BACKLOG = 4_096
"""Connections waiting for accept: a fleet that comes back at once must not be refused by the kernel."""


@dataclass(frozen=True)
class Limits:
    """What the embedded broker allows one connection."""

    connect_timeout_s: float = (
        10.0  # from the TCP connection to a whole CONNECT: slow links need seconds, not minutes
    )
    connect_bytes_max: int = 16_384  # nobody is authenticated yet; the will, `gone`, is below 1 KiB
    packet_bytes_max: int = PACKET_BYTES_MAX
    keepalive_factor: float = 1.5  # [MQTT-3.1.2-24]
    sweep_s: float = (
        0.5  # how often time-outs are looked at: one walk over all connections instead of a timer for each
    )
    linger_s: float = 2.0  # how long a closed connection may take to read what was sent before
    filters_max: int = 64  # subscriptions of one connection; a device needs three
    inflight_max: int = (
        10_000  # QoS 1 messages sent and not acknowledged; the cloud acknowledges after its commit
    )
    queue_bytes_max: int = (
        1_048_576  # unread output of a device: beyond it the device is cut off, and says hello again
    )
    inspect_bytes_max: int = 8_388_608  # the same for an inspector, which hears everything
    cloud_bytes_high: int = (
        16_777_216  # unread output of the cloud at which devices' reading is paused (TCP holds them)
    )
    cloud_bytes_low: int = 4_194_304  # and at which they go on
    cloud_bytes_max: int = 67_108_864  # beyond it (wills, its own messages) the cloud is cut off as well
    cloud_stall_s: float = 30.0  # a cloud that takes nothing for so long is dead, and must not hold the fleet
    log_lines_max: int = 20  # a second; what is above it is counted
