"""From URL to backend. This package alone decides between RabbitMQ and embedded, and between Aerospike and SQLite."""

from ingest.backends.broker import BrokerBackend, DeadLetterAccess, RabbitMQBackend, broker_backend, require_rabbitmq
from ingest.backends.store import StoreBackend, store_backend

__all__ = [
    "BrokerBackend",
    "DeadLetterAccess",
    "RabbitMQBackend",
    "StoreBackend",
    "broker_backend",
    "require_rabbitmq",
    "store_backend",
]
