"""Adapters of `domain.ports.Store`: `sqlite` on one file, `aerospike` on a cluster."""
