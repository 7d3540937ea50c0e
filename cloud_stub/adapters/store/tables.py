"""The tables of the cloud's database, in words that SQLite and PostgreSQL both understand.

They hold no rules. The columns of a table stand in the order of its row's fields, so that a row becomes a tuple and
back without names. Flags are integers 0 and 1, words are text and mappings are canonical JSON text: no value needs a
dialect's conversion on its way. `migrations/` makes these tables; a test holds the two together.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    text,
)

SCHEMA: Final = "0001"  # the newest migration: what this version of lastgood reads and writes

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _key(name: str) -> Column[str]:
    return Column(name, String, primary_key=True, nullable=False)


def _word(name: str) -> Column[str]:
    return Column(name, String, nullable=False)


def _maybe_word(name: str) -> Column[str | None]:
    return Column(name, String, nullable=True)


def _number(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def _maybe_number(name: str) -> Column[int | None]:
    return Column(name, BigInteger, nullable=True)


def _flag(name: str) -> Column[int]:
    return Column(name, SmallInteger, nullable=False)


def _json(name: str) -> Column[str]:
    return Column(name, Text, nullable=False)


def _maybe_json(name: str) -> Column[str | None]:
    return Column(name, Text, nullable=True)


updates: Final = Table(
    "updates",
    metadata,
    _key("update"),
    _word("sha256"),
    _number("size_bytes"),
    Column("manifest", LargeBinary, nullable=False),
    _number("release_counter"),
    _json("compatibility"),
    _number("bytes_total"),
    _number("imported_ms"),
    _word("description"),
    _maybe_number("withdrawn_ms"),
    _word("withdrawn_why"),
)

devices: Final = Table(
    "devices",
    metadata,
    _key("id"),
    _number("created_ms"),
    _word("password_hash"),
    _word("group"),
    _maybe_word("group_tag"),
    _maybe_word("group_override"),
    _maybe_word("class_key"),
    _json("properties"),
    _json("tags"),
    _maybe_word("instance"),
    _maybe_word("instance_before"),
    _number("instance_since_ms"),
    _flag("cloned"),
    _number("sequence"),
    _maybe_word("digest"),
    _maybe_number("reported_epoch"),
    _maybe_number("epoch_in_work"),
    _maybe_word("running_update"),
    _maybe_word("running_sha256"),
    _number("running_counter"),
    _number("floor"),
    _word("work_state"),
    _json("slots"),
    _maybe_word("booted"),
    _maybe_word("last_known_good"),
    _number("outcomes_folded"),
    _word("agent_version"),
    _maybe_number("answer_epoch"),
    _maybe_word("answer"),
    _maybe_word("connection"),
    _flag("online"),
    _maybe_number("last_seen_ms"),
    _number("heard_ms"),
    _number("epoch"),
    _number("published_epoch"),
    _flag("order_stale"),
    _maybe_word("order_action"),
    _maybe_word("order_deployment"),
    _maybe_number("order_attempt"),
    _maybe_word("order_update"),
    _maybe_word("order_sha256"),
    _flag("order_downgrade"),
    _word("order_why"),
)

deployments: Final = Table(
    "deployments",
    metadata,
    _key("id"),
    _word("group"),
    _word("state"),
    _json("updates"),
    _number("created_ms"),
    _word("created_by"),
    _maybe_json("policy"),
    _flag("allow_downgrade"),
    _json("allowed_withdrawn"),
    _number("retries"),
    _number("retry_delay_ms"),
    _number("device_timeout_ms"),
    _number("attempt_timeout_ms"),
    _maybe_number("start_at_ms"),
    _maybe_number("started_ms"),
    _maybe_number("ended_ms"),
    _word("ended_why"),
    _maybe_word("supersedes"),
    _maybe_word("superseded_by"),
    _maybe_word("cause"),
    _maybe_word("rollback"),
    _maybe_json("trip"),
    _number("tally_pending"),
    _number("tally_working"),
    _number("tally_succeeded"),
    _number("tally_already_there"),
    _number("tally_failed"),
    _number("tally_counted"),
    _number("tally_canceled"),
    _number("tally_incompatible"),
    _number("tally_unprotected"),
    _number("tally_dropped"),
    _number("tally_moved_on"),
)

assignments: Final = Table(
    "assignments",
    metadata,
    Column("deployment", String, ForeignKey("deployments.id"), primary_key=True, nullable=False),
    Column("device", String, ForeignKey("devices.id"), primary_key=True, nullable=False),
    _word("state"),
    _word("class_key"),
    _maybe_word("update"),
    _maybe_word("sha256"),
    _number("attempt"),
    _number("epoch"),
    _word("phase"),
    _maybe_word("reason"),
    _maybe_word("party"),
    _word("detail"),
    _flag("already_there"),
    _flag("counted"),
    _flag("suspended"),
    _flag("guessed"),
    _flag("moved_on"),
    _number("retries_used"),
    _number("tries_elsewhere"),
    _maybe_number("retry_at_ms"),
    _maybe_word("cancel"),
    _maybe_number("began_ms"),
    _number("moved_ms"),
    _number("bytes_done"),
    _number("bytes_total"),
    _number("updated_ms"),
    sqlite_with_rowid=False,  # the key is the row's place: one tree less to write for every verdict
)

notes: Final = Table("notes", metadata, _key("key"), _maybe_word("value"))

audit: Final = Table(
    "audit",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False, nullable=False),
    _number("at_ms"),
    _word("who"),
    _word("what"),
    _word("about"),
    _json("facts"),
    _word("chain"),
)

# What partial indexes say, and what queries must repeat to the letter, for SQLite to use the index.
IS_ACTIVE: Final = "state = 'active'"
IS_STALE: Final = "order_stale = 1"
IS_UNPUBLISHED: Final = (
    "online = 1 AND order_stale = 0 AND epoch > published_epoch AND reported_epoch IS NOT NULL"
)
HAS_START: Final = "state = 'scheduled'"
HAS_RETRY: Final = "retry_at_ms IS NOT NULL"
HAS_CAUSE: Final = "cause IS NOT NULL"
IS_UNSETTLED: Final = "tally_pending > 0 AND state IN ('superseded', 'canceled', 'rolled_back')"


def _index(name: str, *columns: object, unique: bool = False, where: str | None = None) -> Index:
    condition = None if where is None else text(where)
    return Index(name, *columns, unique=unique, sqlite_where=condition, postgresql_where=condition)  # type: ignore[arg-type]


_index("uq_updates_sha256", updates.c.sha256, unique=True)
_index("ix_devices_members", devices.c.group, devices.c.id, devices.c.online)
_index("ix_devices_classes", devices.c.group, devices.c.class_key, devices.c.floor, devices.c.id)
_index("ix_devices_runs", devices.c.group, devices.c.running_update, devices.c.running_sha256)
_index("ix_devices_stale", devices.c.online, devices.c.id, where=IS_STALE)
_index("ix_devices_unpublished", devices.c.id, where=IS_UNPUBLISHED)
_index("uq_deployments_one_active", deployments.c.group, unique=True, where=IS_ACTIVE)  # R14
_index("uq_deployments_one_rollback", deployments.c.cause, unique=True, where=HAS_CAUSE)  # R14
_index("ix_deployments_due", deployments.c.start_at_ms, deployments.c.created_ms, where=HAS_START)
_index("ix_deployments_unsettled", deployments.c.id, where=IS_UNSETTLED)
_index("ix_deployments_created", deployments.c.created_ms)
_index("ix_deployments_group", deployments.c.group, deployments.c.created_ms)
_index("ix_assignments_state", assignments.c.deployment, assignments.c.state, assignments.c.device)
_index("ix_assignments_device", assignments.c.device, assignments.c.deployment)
_index("ix_assignments_retry", assignments.c.deployment, assignments.c.retry_at_ms, where=HAS_RETRY)
_index("ix_audit_about", audit.c.about, audit.c.number)
