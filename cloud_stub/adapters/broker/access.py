"""Who may say and hear what on the broker: one table, from which both engines take their access list.

It knows nothing of connections. The rule it keeps: what is not listed is denied. A device publishes four
topics of its own, and hears its own and everybody's orders; a subscription is granted only if *all* it can
match is allowed.
"""

import re
from collections.abc import Iterable

from cloud_stub.adapters.broker.errors import BrokerError

CLOUD = "_cloud"
INSPECT = "_inspect"
PROBE = "_probe"
"""With this account the supervisor asks a broker whether it has read its accounts; it may do nothing else."""

SERVICES = (CLOUD, INSPECT, PROBE)
DEVICE_WRITES = ("up/{name}/hello", "up/{name}/state", "up/{name}/progress", "up/{name}/gone")
DEVICE_READS = ("down/{name}/#", "down/all/#")
_SERVICE_WRITES = {CLOUD: ("#",)}
_SERVICE_READS = {CLOUD: ("#",), INSPECT: ("#",)}

EVERYBODY = "all"
"""The level of `down/all/sync`: no device may have this name, or its orders would be everybody's."""

_DEVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def may_publish(name: str, topic: str, prefix: str) -> bool:
    """Whether an account may publish on a topic (a concrete one, without wildcards)."""
    return any(covers(allowed, topic) for allowed in writes(name, prefix))


def may_subscribe(name: str, topic_filter: str, prefix: str) -> bool:
    """Whether everything that a filter can match is allowed to an account; shared subscriptions never are."""
    return any(covers(allowed, topic_filter) for allowed in reads(name, prefix))


def writes(name: str, prefix: str) -> tuple[str, ...]:
    """The filters an account may publish to."""
    return _under(prefix, _SERVICE_WRITES.get(name, ()) if is_service(name) else DEVICE_WRITES, name)


def reads(name: str, prefix: str) -> tuple[str, ...]:
    """The filters an account may subscribe to."""
    return _under(prefix, _SERVICE_READS.get(name, ()) if is_service(name) else DEVICE_READS, name)


def covers(allowed: str, topic_filter: str) -> bool:
    """Whether each topic that `topic_filter` matches is matched by `allowed` too (MQTT 3.1.1, section
    4.7)."""
    inner = topic_filter.split("/")
    outer = allowed.split("/")
    for index, level in enumerate(outer):
        if level == "#":
            return True
        if index >= len(inner) or inner[index] == "#":
            return False
        if level != "+" and level != inner[index]:
            return False
    # `a/#` matches `a` as well, so a filter that goes on with `#` after the allowed levels is wider
    return len(inner) == len(outer)


def is_service(name: str) -> bool:
    """Whether an account is one of the service's own, rather than a device's."""
    return name.startswith("_")


def check_names(names: Iterable[str]) -> None:
    """Refuse account names that a password file or an access list could not hold safely. Raises
    BrokerError."""
    for name in names:
        if name in (CLOUD, INSPECT) or (_DEVICE_NAME.fullmatch(name) and name != EVERYBODY):
            continue
        raise BrokerError(
            f"account {name!r} is not usable: a device id has 1 to 64 letters, digits and . _ -, begins with a letter "
            f"or digit, and is not {EVERYBODY!r}"
        )


def mosquitto_device_acl(prefix: str) -> str:
    """The access list of mosquitto's device listener: patterns only, `%u` being the authenticated name."""
    lines = [f"pattern write {prefix}/{topic.format(name='%u')}" for topic in DEVICE_WRITES]
    lines += [f"pattern read {prefix}/{topic.format(name='%u')}" for topic in DEVICE_READS]
    return "\n".join(lines) + "\n"


def mosquitto_service_acl(prefix: str) -> str:
    """The access list of mosquitto's service listener."""
    lines = []
    for name in SERVICES:
        lines.append(f"user {name}")
        lines += [f"topic write {topic}" for topic in writes(name, prefix)]
        lines += [f"topic read {topic}" for topic in reads(name, prefix)]
    return "\n".join(lines) + "\n"


def _under(prefix: str, topics: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(f"{prefix}/{topic.format(name=name)}" for topic in topics)
