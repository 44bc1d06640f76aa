"""A valid task body for tests."""

from typing import Any, Final

TASK: Final[dict[str, Any]] = {
    "type": "sentiment",
    "data_url": "https://a.example/x",
    "label_spec": {"question": "q?", "options": ["a", "b"]},
}
