"""The cloud's brokers: somebody's own, mosquitto with a generated configuration, or amqtt hardened and
embedded.

`start_broker` starts one of them and returns it as the port Broker (cloud_stub/ports.py). Devices
are accounts named as themselves; the cloud is `_cloud`, inspectors are `_inspect`.
"""

from cloud_stub.adapters.broker.access import CLOUD, INSPECT
from cloud_stub.adapters.broker.errors import BrokerError
from cloud_stub.adapters.broker.passwords import SALT_BYTES, hash_password, new_token, verify
from cloud_stub.adapters.broker.start import start_broker

__all__ = [
    "CLOUD",
    "INSPECT",
    "SALT_BYTES",
    "BrokerError",
    "hash_password",
    "new_token",
    "start_broker",
    "verify",
]
