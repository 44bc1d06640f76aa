"""The contract's own bodies, and what the service answers to them."""

from typing import Any, Final

from ingest.domain import identity
from ingest.domain.identity import SubmissionKind

CREATED_AT: Final = "2026-04-09T12:00:00Z"
CUSTOMER: Final = "acme"
WEBHOOK: Final = "https://example.com/hooks/asg"

TASK: Final[dict[str, Any]] = {
    "type": "text_classification",
    "data_url": "https://cdn.example.com/doc.txt",
    "label_spec": {"question": "Document category?", "options": ["invoice", "receipt", "other"]},
    "consensus_threshold": 3,
    "idempotency_key": "order-10042-line-3",
}
BATCH: Final[dict[str, Any]] = {
    "callback_url": WEBHOOK,
    "tasks": [
        {
            "type": "image_classification",
            "data_url": f"https://cdn.example.com/{name}.jpg",
            "label_spec": {"question": "Animal?", "options": ["cat", "dog"]},
        }
        for name in ("a", "b")
    ],
}
BATCH_KEY: Final = "pets-2026-04-09"

TASK_ID: Final = identity.keyed_id(SubmissionKind.TASK, CUSTOMER, TASK["idempotency_key"])
BATCH_ID: Final = identity.keyed_id(SubmissionKind.BATCH, CUSTOMER, BATCH_KEY)
TASK_IDS: Final = [identity.item_id(BATCH_ID, index) for index in range(2)]

TASK_ANSWER: Final = {"task_id": TASK_ID, "status": "pending", "created_at": CREATED_AT}
BATCH_ANSWER: Final = {"batch_id": BATCH_ID, "task_count": 2, "status": "accepted"}
REPLAY: Final = {"idempotent": True}
EXPIRES: Final = "Thu, 16 Apr 2026 12:00:00 GMT"
REQUEST_ID: Final = "5f2a9c0e7d31b864"
TRACEPARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
