"""The body of a valid task, for tests that need any task."""

from typing import Any, Final

TASK: Final[dict[str, Any]] = {
    "type": "sentiment",
    "data_url": "https://a.example/x",
    "label_spec": {"question": "q?", "options": ["a", "b"]},
}
