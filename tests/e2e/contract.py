"""The examples of the contract. Tests run them verbatim, except for the host."""

import json
import subprocess
from typing import Any

TASK_CURL = r"""
curl -sS -X POST https://api.asgrefinery.io/v1/tasks \
-H "Authorization: Bearer $API_KEY" \
-H 'Content-Type: application/json' \
-d '{
"type": "text_classification",
"data_url": "https://cdn.example.com/doc.txt",
"label_spec": {
"question": "Document category?",
"options": ["invoice", "receipt", "other"]
},
"consensus_threshold": 3,
"idempotency_key": "order-10042-line-3"
}'
"""
BATCH_CURL = r"""
curl -sS -X POST https://api.asgrefinery.io/v1/tasks/batch \
-H "Authorization: Bearer $API_KEY" \
-H 'Content-Type: application/json' \
-d '{
"callback_url": "https://example.com/hooks/asg",
"tasks": [
{
"type": "image_classification",
"data_url": "https://cdn.example.com/a.jpg",
"label_spec": {"question": "Animal?", "options": ["cat", "dog"]}
},
{
"type": "image_classification",
"data_url": "https://cdn.example.com/b.jpg",
"label_spec": {"question": "Animal?", "options": ["cat", "dog"]}
}
]
}'
"""
TASK: dict[str, Any] = {
    "type": "text_classification",
    "data_url": "https://cdn.example.com/doc.txt",
    "label_spec": {"question": "Document category?", "options": ["invoice", "receipt", "other"]},
}


def curl(command: str, base_url: str, api_key: str) -> dict[str, object]:
    """Run a curl line of the contract against `base_url` and return the decoded answer."""
    script = command.replace("https://api.asgrefinery.io", base_url)
    done = subprocess.run(
        ["bash", "-c", script], env={"API_KEY": api_key, "PATH": "/usr/bin:/bin"}, capture_output=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer
