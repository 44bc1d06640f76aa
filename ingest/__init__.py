"""The ingestion worker: the door through which labelling tasks enter.

The flow, in one line::

    client -> shim -> asg.submissions -> ingest.tasks, ingest.batches -> worker pool
           -> asg.events -> consensus.tasks, webhook.dispatch

Where to find what:

- ``shim/``       HTTP in: authenticate, validate, admit, publish with a confirm, answer.
- ``worker/``     consumers: validate, admit what the shim has not, expand, emit, settle, ack.
- ``admission``   claim the key and charge the quota: the one piece of code both of them call.
- ``broker/``     RabbitMQ and the embedded queue behind the ports of ``domain.ports``.
- ``store/``      Aerospike and SQLite behind the ports of ``domain.ports``.
- ``telemetry/`` metrics, health and traces: wraps the ports, and serves what is seen on a port of its own.
- ``sqlite_file`` what the SQLite store and the embedded queue stand on.
- ``domain/``     pure: submissions, identity, ledger entries, events, errors, ports. No IO.
- ``bootstrap``   the one place that picks the adapters; ``settings`` reads ``INGEST_*``; ``cli/`` runs it.
- ``sdk/``        the Python SDK ``asg_gateway``; shares nothing with the rest.

Imports go down only: cli, bootstrap, settings, {shim, worker, broker, store, telemetry}, {admission, sqlite_file},
domain.
"""

__version__ = "0.1.0"
