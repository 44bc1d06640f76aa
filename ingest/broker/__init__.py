"""Adapters of `domain.ports.Broker`: `rabbitmq` on a RabbitMQ cluster, `embedded` on one SQLite file."""
