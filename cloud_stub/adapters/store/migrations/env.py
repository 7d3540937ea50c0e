"""What Alembic runs for a migration: on the connection, and in the transaction, that `migrate.py` has opened.

It finds no database by itself. To write a new migration, compare with the tables:
see "A new migration" in CONTRIBUTING.
"""

from alembic import context

from cloud_stub.adapters.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # SQLite's tables are made in the transaction too: wholly or not at all
    render_as_batch=True,  # SQLite changes a column by making the table anew
)
with context.begin_transaction():
    context.run_migrations()
