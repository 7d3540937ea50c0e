"""Alembic's folder: how a database of an older schema becomes one of this. `migrate.py` runs it."""
