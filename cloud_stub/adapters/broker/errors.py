"""The one error that the brokers raise; its sentence says what to do next."""

from protocol.errors import ServiceError


class BrokerError(ServiceError):
    """A broker that cannot be started, or an account that it cannot hold."""
