"""Consumers: a subscription that survives lost connections, and what happens to each delivery."""
