"""Hooks that make schemathesis respect rules that OpenAPI cannot express (SCHEMATHESIS_HOOKS)."""

from typing import Any

import schemathesis
from schemathesis import GenerationMode

WEBHOOK = "https://hooks.example/x"


@schemathesis.hook
def before_call(_: Any, case: Any, __: Any) -> None:
    """Correct a body that is meant to be valid.

    Use the registered callback_url, put the idempotency key either in the header or in the body, and make at least
    two options differ.
    """
    if not isinstance(case.body, dict) or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    for submission in (case.body, *case.body.get("tasks", ())):
        if "callback_url" in submission:
            submission["callback_url"] = WEBHOOK
        options = submission.get("label_spec", {}).get("options")
        if options and len(set(options)) < 2:
            options.append(options[0] + "x")
    if "idempotency_key" in case.body and case.headers:
        case.headers.pop("Idempotency-Key", None)
