"""Sends many hostile submissions over HTTP and AMQP to real processes. Run it with `scripts/fuzz`."""
