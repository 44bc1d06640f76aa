"""Deterministic simulation: the service's own code on an event loop with virtual time and seeded chance."""
