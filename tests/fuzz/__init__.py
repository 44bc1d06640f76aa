"""Hostile input by the thousand, over HTTP and over AMQP, against real processes: `scripts/fuzz`."""
