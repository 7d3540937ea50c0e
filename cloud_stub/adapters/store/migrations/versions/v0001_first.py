"""The first schema: updates, devices, deployments, assignments, notes and the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "audit",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("who", sa.String(), nullable=False),
        sa.Column("what", sa.String(), nullable=False),
        sa.Column("about", sa.String(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("chain", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit")),
    )
    op.create_index(
        "ix_audit_about", "audit", ["about", "number"], unique=False, sqlite_where=None, postgresql_where=None
    )
    op.create_table(
        "deployments",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("group", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("updates", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=True),
        sa.Column("allow_downgrade", sa.SmallInteger(), nullable=False),
        sa.Column("allowed_withdrawn", sa.Text(), nullable=False),
        sa.Column("retries", sa.BigInteger(), nullable=False),
        sa.Column("retry_delay_ms", sa.BigInteger(), nullable=False),
        sa.Column("device_timeout_ms", sa.BigInteger(), nullable=False),
        sa.Column("attempt_timeout_ms", sa.BigInteger(), nullable=False),
        sa.Column("start_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("started_ms", sa.BigInteger(), nullable=True),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.Column("ended_why", sa.String(), nullable=False),
        sa.Column("supersedes", sa.String(), nullable=True),
        sa.Column("superseded_by", sa.String(), nullable=True),
        sa.Column("cause", sa.String(), nullable=True),
        sa.Column("rollback", sa.String(), nullable=True),
        sa.Column("trip", sa.Text(), nullable=True),
        sa.Column("tally_pending", sa.BigInteger(), nullable=False),
        sa.Column("tally_working", sa.BigInteger(), nullable=False),
        sa.Column("tally_succeeded", sa.BigInteger(), nullable=False),
        sa.Column("tally_already_there", sa.BigInteger(), nullable=False),
        sa.Column("tally_failed", sa.BigInteger(), nullable=False),
        sa.Column("tally_counted", sa.BigInteger(), nullable=False),
        sa.Column("tally_canceled", sa.BigInteger(), nullable=False),
        sa.Column("tally_incompatible", sa.BigInteger(), nullable=False),
        sa.Column("tally_unprotected", sa.BigInteger(), nullable=False),
        sa.Column("tally_dropped", sa.BigInteger(), nullable=False),
        sa.Column("tally_moved_on", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployments")),
    )
    op.create_index(
        "ix_deployments_created",
        "deployments",
        ["created_ms"],
        unique=False,
        sqlite_where=None,
        postgresql_where=None,
    )
    op.create_index(
        "ix_deployments_due",
        "deployments",
        ["start_at_ms", "created_ms"],
        unique=False,
        sqlite_where=sa.text("state = 'scheduled'"),
        postgresql_where=sa.text("state = 'scheduled'"),
    )
    op.create_index(
        "ix_deployments_unsettled",
        "deployments",
        ["id"],
        unique=False,
        sqlite_where=sa.text("tally_pending > 0 AND state IN ('superseded', 'canceled', 'rolled_back')"),
        postgresql_where=sa.text("tally_pending > 0 AND state IN ('superseded', 'canceled', 'rolled_back')"),
    )
    op.create_index(
        "ix_deployments_group",
        "deployments",
        ["group", "created_ms"],
        unique=False,
        sqlite_where=None,
        postgresql_where=None,
    )
    op.create_index(
        "uq_deployments_one_active",
        "deployments",
        ["group"],
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )
    op.create_index(
        "uq_deployments_one_rollback",
        "deployments",
        ["cause"],
        unique=True,
        sqlite_where=sa.text("cause IS NOT NULL"),
        postgresql_where=sa.text("cause IS NOT NULL"),
    )
    op.create_table(
        "devices",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("password_hash", sa.String(), nullable=False),
        sa.Column("group", sa.String(), nullable=False),
        sa.Column("group_tag", sa.String(), nullable=True),
        sa.Column("group_override", sa.String(), nullable=True),
        sa.Column("class_key", sa.String(), nullable=True),
        sa.Column("properties", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("instance", sa.String(), nullable=True),
        sa.Column("instance_before", sa.String(), nullable=True),
        sa.Column("instance_since_ms", sa.BigInteger(), nullable=False),
        sa.Column("cloned", sa.SmallInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(), nullable=True),
        sa.Column("reported_epoch", sa.BigInteger(), nullable=True),
        sa.Column("epoch_in_work", sa.BigInteger(), nullable=True),
        sa.Column("running_update", sa.String(), nullable=True),
        sa.Column("running_sha256", sa.String(), nullable=True),
        sa.Column("running_counter", sa.BigInteger(), nullable=False),
        sa.Column("floor", sa.BigInteger(), nullable=False),
        sa.Column("work_state", sa.String(), nullable=False),
        sa.Column("slots", sa.Text(), nullable=False),
        sa.Column("booted", sa.String(), nullable=True),
        sa.Column("last_known_good", sa.String(), nullable=True),
        sa.Column("outcomes_folded", sa.BigInteger(), nullable=False),
        sa.Column("agent_version", sa.String(), nullable=False),
        sa.Column("answer_epoch", sa.BigInteger(), nullable=True),
        sa.Column("answer", sa.String(), nullable=True),
        sa.Column("connection", sa.String(), nullable=True),
        sa.Column("online", sa.SmallInteger(), nullable=False),
        sa.Column("last_seen_ms", sa.BigInteger(), nullable=True),
        sa.Column("heard_ms", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("published_epoch", sa.BigInteger(), nullable=False),
        sa.Column("order_stale", sa.SmallInteger(), nullable=False),
        sa.Column("order_action", sa.String(), nullable=True),
        sa.Column("order_deployment", sa.String(), nullable=True),
        sa.Column("order_attempt", sa.BigInteger(), nullable=True),
        sa.Column("order_update", sa.String(), nullable=True),
        sa.Column("order_sha256", sa.String(), nullable=True),
        sa.Column("order_downgrade", sa.SmallInteger(), nullable=False),
        sa.Column("order_why", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_devices")),
    )
    op.create_index(
        "ix_devices_classes",
        "devices",
        ["group", "class_key", "floor", "id"],
        unique=False,
        sqlite_where=None,
        postgresql_where=None,
    )
    op.create_index(
        "ix_devices_members",
        "devices",
        ["group", "id", "online"],
        unique=False,
        sqlite_where=None,
        postgresql_where=None,
    )
    op.create_index(
        "ix_devices_runs",
        "devices",
        ["group", "running_update", "running_sha256"],
        unique=False,
        sqlite_where=None,
        postgresql_where=None,
    )
    op.create_index(
        "ix_devices_stale",
        "devices",
        ["online", "id"],
        unique=False,
        sqlite_where=sa.text("order_stale = 1"),
        postgresql_where=sa.text("order_stale = 1"),
    )
    op.create_index(
        "ix_devices_unpublished",
        "devices",
        ["id"],
        unique=False,
        sqlite_where=sa.text(
            "online = 1 AND order_stale = 0 AND epoch > published_epoch AND reported_epoch IS NOT NULL"
        ),
        postgresql_where=sa.text(
            "online = 1 AND order_stale = 0 AND epoch > published_epoch AND reported_epoch IS NOT NULL"
        ),
    )
    op.create_table(
        "notes",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_notes")),
    )
    op.create_table(
        "updates",
        sa.Column("update", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("release_counter", sa.BigInteger(), nullable=False),
        sa.Column("compatibility", sa.Text(), nullable=False),
        sa.Column("bytes_total", sa.BigInteger(), nullable=False),
        sa.Column("imported_ms", sa.BigInteger(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("withdrawn_ms", sa.BigInteger(), nullable=True),
        sa.Column("withdrawn_why", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("update", name=op.f("pk_updates")),
    )
    op.create_index(
        "uq_updates_sha256", "updates", ["sha256"], unique=True, sqlite_where=None, postgresql_where=None
    )
    op.create_table(
        "assignments",
        sa.Column("deployment", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("class_key", sa.String(), nullable=False),
        sa.Column("update", sa.String(), nullable=True),
        sa.Column("sha256", sa.String(), nullable=True),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("party", sa.String(), nullable=True),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("already_there", sa.SmallInteger(), nullable=False),
        sa.Column("counted", sa.SmallInteger(), nullable=False),
        sa.Column("suspended", sa.SmallInteger(), nullable=False),
        sa.Column("guessed", sa.SmallInteger(), nullable=False),
        sa.Column("moved_on", sa.SmallInteger(), nullable=False),
        sa.Column("retries_used", sa.BigInteger(), nullable=False),
        sa.Column("tries_elsewhere", sa.BigInteger(), nullable=False),
        sa.Column("retry_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("cancel", sa.String(), nullable=True),
        sa.Column("began_ms", sa.BigInteger(), nullable=True),
        sa.Column("moved_ms", sa.BigInteger(), nullable=False),
        sa.Column("bytes_done", sa.BigInteger(), nullable=False),
        sa.Column("bytes_total", sa.BigInteger(), nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["deployment"], ["deployments.id"], name=op.f("fk_assignments_deployment")),
        sa.ForeignKeyConstraint(["device"], ["devices.id"], name=op.f("fk_assignments_device")),
        sa.PrimaryKeyConstraint("deployment", "device", name=op.f("pk_assignments")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_assignments_device",
        "assignments",
        ["device", "deployment"],
        unique=False,
        sqlite_where=None,
        postgresql_where=None,
    )
    op.create_index(
        "ix_assignments_retry",
        "assignments",
        ["deployment", "retry_at_ms"],
        unique=False,
        sqlite_where=sa.text("retry_at_ms IS NOT NULL"),
        postgresql_where=sa.text("retry_at_ms IS NOT NULL"),
    )
    op.create_index(
        "ix_assignments_state",
        "assignments",
        ["deployment", "state", "device"],
        unique=False,
        sqlite_where=None,
        postgresql_where=None,
    )
