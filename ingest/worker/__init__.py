"""The consumers: classify, admit what the shim has not, expand, publish events, settle, ack.

- ``worker``      consumes queues and keeps micro-batches in progress; other packages need only `Worker`.
- ``processor``   one attempt at a micro-batch, from reading to the ack.
- ``classify``    what a delivery is: admitted by the shim, sent by a direct producer, or rejected.
- ``customers``   the customers of submissions, cached.
- ``planner``     makes the plans of a micro-batch.
- ``plan``        what one delivery needs: messages to publish, entries to settle.
- ``rejections``  a delivery that cannot be accepted, and why.
- ``outcomes``    what a finished micro-batch adds to the metrics.
- ``breaker``     stops attempts while a dependency is unavailable.
- ``outage``      returns deliveries to their queues in long outages.
- ``refunds``     refunds charges of submissions that never became tasks.
"""

from ingest.worker.worker import Worker

__all__ = ["Worker"]
