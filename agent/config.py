"""What an agent is told by people: its TOML file, the `--join` text, and `--property` and `--tag`.

It opens nothing but those files, and starts nothing (`cli.py` wires). Every error names the key. A key that nothing
reads is refused, so that a misspelt limit never stands silently at its default.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from agent.adapters import application, durable, health, toml_file
from agent.adapters.toml_file import Table
from protocol.errors import OperatorError
from protocol.identity import check_device_id, check_group
from protocol.join import Join
from protocol.topics import DEFAULT_PREFIX, check_prefix

NAME: Final = "agent.toml"  # in the state folder: what the agent was told when it joined
_IDENTITY: Final = frozenset(
    {"device", "broker", "token", "token_file", "cloud_keys", "cloud_keys_pem", "prefix"}
)
CHECKS_MAX: Final = 32
_PATHS: Final = ("token_file", "cloud_keys", "ca_file")  # others lie in the state folder


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """One health check: `what` is the command, URL, address or unit."""

    kind: str
    name: str
    command: tuple[str, ...]
    url: str
    status: int
    host: str
    port: int
    unit: str
    timeout_s: float
    interval_s: float


@dataclass(frozen=True, slots=True)
class ApplicationSettings:
    """What runs from the booted slot: `process`, `systemd` or `none`."""

    kind: str
    command: tuple[str, ...]
    unit: str
    data: Path
    stop_s: float
    variables: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """All that an agent is told. Durations in seconds, sizes in bytes."""

    device: str
    broker: str
    token: str
    keys_pem: tuple[str, ...]
    prefix: str
    ca_file: str | None
    state: Path
    slots: Path
    properties: Mapping[str, str]
    tags: Mapping[str, str]
    application: ApplicationSettings
    checks: tuple[CheckSettings, ...]
    soak_s: float
    startup_s: float
    heartbeat_s: float
    needs_cloud: bool
    cloud_limit_s: float
    trial_starts: int
    download_tries: int
    download_bytes_s: int | None
    log_bytes: int


def load(
    state: Path,
    config: Path | None = None,
    join: Join | None = None,
    properties: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> AgentSettings:
    """Return the settings from the state folder's file, the given file, the join text and the command line.

    The later ones win, and the file's `broker` and `prefix` win over the join text's: the address may be another here.
    With `join` the whole is written to the state folder, so that `--state` alone is enough later.

    Raises:
        OperatorError: a key is missing, unknown or wrong, or the state folder belongs to another device.
    """
    kept = state / NAME
    fields: dict[str, Any] = toml_file.read_toml(kept) if kept.exists() else {}
    if join is not None and fields.get("device", join.device) != join.device:
        raise OperatorError(
            f"The state folder {state} belongs to the device {fields['device']!r}, and the text behind --join is for "
            f"{join.device!r}; name another folder with --state."
        )
    told = {} if config is None else _absolute(toml_file.read_toml(config), config.absolute().parent)
    if config is not None:
        # What a file no longer says is no longer so: of what was kept only the device's identity counts beside it.
        fields = _merged({key: value for key, value in fields.items() if key in _IDENTITY}, told)
    if join is not None:
        for key in ("token_file", "cloud_keys"):
            fields.pop(key, None)
        fields |= {
            "device": join.device,
            "broker": join.broker,
            "token": join.token,
            "cloud_keys_pem": list(join.keys_pem),
            "prefix": join.prefix,
        } | {key: told[key] for key in ("broker", "prefix") if key in told}
    fields = _merged(fields, {"properties": dict(properties or {}), "tags": dict(tags or {})})
    fields.pop("state", None)
    settings = parse(fields, state)
    if join is not None:
        _keep(kept, fields)
    return settings


def state_of(config: Path | None, given: Path | None, default: Path) -> Path:
    """Return the state folder: the given one, else the configuration's, else the default.

    Raises:
        OperatorError: the configuration cannot be read.
    """
    if given is not None:
        return given.absolute()
    if config is not None and isinstance(named := toml_file.read_toml(config).get("state"), str):
        return config.absolute().parent / named
    return default


def parse(fields: Mapping[str, Any], state: Path) -> AgentSettings:
    """Return the settings that these tables say.

    Raises:
        OperatorError: a key is missing, unknown or wrong; the sentence names it.
    """
    top = Table("", fields)
    limits, slots = top.table("limits"), top.table("slots")
    backend = slots.choice("backend", ("directory",), "directory")
    assert backend == "directory"  # the only one so far; others come with their own settings
    if "device" not in fields:
        raise OperatorError(
            f"{state} belongs to no device yet: run the line that `lastgood device add` printed, "
            "or give 'device' and its token with --config."
        )
    device = check_device_id(top.text("device"))
    settings = AgentSettings(
        device=device,
        broker=top.text("broker"),
        token=_token(top, state),
        keys_pem=_keys(top, state),
        prefix=check_prefix(top.text("prefix", DEFAULT_PREFIX)),
        ca_file=_ca_file(top, state),
        state=state,
        slots=state / slots.text("folder", "slots"),
        properties=top.words("properties"),
        tags=_tags(top),
        application=_application(top.table("application"), state),
        checks=_checks(top),
        soak_s=top.number("soak_s", health.SOAK_S, least=0, most=86_400),
        startup_s=top.number("startup_s", health.STARTUP_S, least=1, most=86_400),
        heartbeat_s=top.number("heartbeat_s", 60, least=1, most=86_400),
        needs_cloud=top.flag("needs_cloud", True),
        cloud_limit_s=top.number("cloud_limit_s", 1_800, least=1, most=604_800),
        trial_starts=int(top.number("trial_starts", 3, least=1, most=16)),
        download_tries=int(limits.number("download_tries", 8, least=1, most=1_000)),
        download_bytes_s=int(limits.number("download_bytes_s", 0, least=0, most=2**40)) or None,
        log_bytes=int(limits.number("log_bytes", application.LOG_BYTES_MAX, least=4_096, most=2**30)),
    )
    for table in (limits, slots, top):
        table.finish()
    return settings


def _keep(path: Path, fields: Mapping[str, Any]) -> None:
    text = "# Written by `lastgood agent run --join`. It holds this device's secret.\n" + toml_file.dump_toml(
        fields
    )
    try:
        durable.make_folder(path.parent)
        durable.replace_file(path, text.encode("utf-8"), mode=0o600)
    except OSError as error:
        raise OperatorError(
            f"{path} cannot be written ({error.strerror}); name another folder with --state."
        ) from error


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = (
            _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    # Two ways to say one thing: the one that was said last counts.
    for one, other in (("token", "token_file"), ("cloud_keys", "cloud_keys_pem")):
        for said, dropped in ((one, other), (other, one)):
            if said in above and dropped not in above:
                result.pop(dropped, None)
    return result


def _absolute(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths in a file are relative to that file; the state folder's own file is beside what it names."""
    for key in _PATHS:
        if isinstance(fields.get(key), str) and fields[key]:
            fields[key] = str(folder / fields[key])
    return fields


def _token(top: Table, state: Path) -> str:
    text, file = top.text("token", ""), top.text("token_file", "")
    if bool(text) == bool(file):
        raise OperatorError(
            "Exactly one of 'token' and 'token_file' is needed; `lastgood device add` makes a token."
        )
    token = text or _read(state / file, "token_file").strip()
    if not token or not all("!" <= char <= "~" for char in token):
        raise OperatorError("The token is empty, or holds characters that no token has; copy it again.")
    return token


def _keys(top: Table, state: Path) -> tuple[str, ...]:
    inline, file = top.texts("cloud_keys_pem"), top.text("cloud_keys", "")
    if bool(inline) == bool(file):
        raise OperatorError("Exactly one of 'cloud_keys' (a PEM file) and 'cloud_keys_pem' is needed.")
    if inline:
        return inline
    mark = "-----BEGIN PUBLIC KEY-----"
    found = tuple(mark + part for part in _read(state / file, "cloud_keys").split(mark)[1:])
    if not found:
        raise OperatorError(f"'cloud_keys' names {file}, which holds no public key in PEM form.")
    return found


def _ca_file(top: Table, state: Path) -> str | None:
    named = top.text("ca_file", "")
    if named and "-----BEGIN CERTIFICATE-----" not in _read(state / named, "ca_file"):
        raise OperatorError(f"'ca_file' names {state / named}, which holds no certificate in PEM form.")
    return str(state / named) if named else None


def _read(path: Path, key: str) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(toml_file.CONFIG_BYTES_MAX)
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"'{key}' names {path}, which cannot be read.") from error


def _tags(top: Table) -> dict[str, str]:
    tags = top.words("tags")
    if "group" in tags:
        check_group(tags["group"])
    return tags


def _application(table: Table, state: Path) -> ApplicationSettings:
    kind = table.choice("kind", ("process", "systemd", "none"), "none")
    settings = ApplicationSettings(
        kind=kind,
        command=table.texts("command"),
        unit=table.text("unit", ""),
        data=state / table.text("data", "data"),
        stop_s=table.number("stop_s", application.STOP_S, least=0.1, most=600),
        variables=table.words("variables"),
    )
    table.finish()
    if kind == "process" and not settings.command:
        raise OperatorError(
            '\'application.command\' is missing: a list such as ["{slot}/bin/app", "--data", "{data}"].'
        )
    if kind == "systemd" and not settings.unit:
        raise OperatorError("'application.unit' is missing: the systemd unit that runs from the booted slot.")
    if (settings.command and kind != "process") or (settings.unit and kind != "systemd"):
        raise OperatorError(
            f"'application.kind' is {kind!r}, which has no use for the command or unit given beside it: "
            'a command wants kind = "process", a unit wants kind = "systemd".'
        )
    return settings


def _checks(top: Table) -> tuple[CheckSettings, ...]:
    return tuple(_check(table, index) for index, table in enumerate(top.tables("checks", CHECKS_MAX)))


def _check(table: Table, index: int) -> CheckSettings:
    kind = table.choice("kind", ("command", "http", "tcp", "systemd"), None)
    needs = {
        "command": ("command",),
        "http": ("url", "status"),
        "tcp": ("host", "port"),
        "systemd": ("unit",),
    }[kind]
    check = CheckSettings(
        kind=kind,
        name=table.text("name", f"{index + 1} ({kind})"),
        command=table.texts("command") if "command" in needs else (),
        url=table.text("url") if "url" in needs else "",
        status=int(table.number("status", 200, least=100, most=599)) if "status" in needs else 200,
        host=table.text("host", "127.0.0.1") if "host" in needs else "",
        port=int(table.number("port", None, least=1, most=65_535)) if "port" in needs else 0,
        unit=table.text("unit") if "unit" in needs else "",
        timeout_s=table.number("timeout_s", health.TIMEOUT_S, least=0.1, most=600),
        interval_s=table.number("interval_s", health.INTERVAL_S, least=0.1, most=3_600),
    )
    table.finish()
    if kind == "command" and not check.command:
        raise OperatorError(f"'{table.name}command' is missing: a list of the command and its arguments.")
    if kind == "http" and not _is_web_address(check.url):
        raise OperatorError(f"'{table.name}url' is {check.url!r}: write it as http://HOST:PORT/PATH.")
    if kind == "tcp" and not _is_host(check.host):
        raise OperatorError(f"'{table.name}host' is {check.host!r}: write the name or address of a host.")
    return check


def _is_web_address(text: str) -> bool:
    """Whether a check can ask there: what no request can say would else fail every trial (health_failed)."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    plain = all("!" <= char <= "~" for char in text)
    return plain and parts.scheme in {"http", "https"} and port != 0 and _is_host(parts.hostname or "")


def _is_host(name: str) -> bool:
    try:
        return bool(name.encode("idna")) and all(char > " " for char in name)
    except UnicodeError:
        return False
