"""The cloud's database: the ports Store, Unit and Reader on SQLite.

It holds no rules of deployments (`cloud_stub/core` does). It keeps the rule that nothing is acknowledged which a power
cut could take back.
"""

from cloud_stub.adapters.store.audit import verify_audit
from cloud_stub.adapters.store.store import SqlStore, open_store

__all__ = ["SqlStore", "open_store", "verify_audit"]
