"""The ingestion worker of a human-labelling service.

The flow::

    client -> shim -> asg.submissions -> ingest.http.*, ingest.heavy.* -> worker pool
    direct producer -> asg.submissions -> ingest.tasks, ingest.batches -> worker pool
    worker pool -> asg.events -> consensus.tasks, webhook.dispatch

`ingest/README.md` has the code map, the glossary and the invariants.
"""

__version__ = "0.1.0"
