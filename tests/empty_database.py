"""What migrations make of an empty database, worked out before anything is forked (`forked.py`): see `migrate.py`."""

from cloud_stub.adapters.store import open_store

open_store("sqlite://").close()
