"""What OpenAPI cannot say, told to schemathesis (SCHEMATHESIS_HOOKS)."""

from typing import Any

import schemathesis
from schemathesis import GenerationMode

WEBHOOK = "https://hooks.example/x"


@schemathesis.hook
def before_call(_: Any, case: Any, __: Any) -> None:
    """What right bodies need besides.

    callback_url is one that is registered; a key stands in the header or in the body, not two in both; two of the
    options differ.
    """
    if not isinstance(case.body, dict) or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    for holder in (case.body, *case.body.get("tasks", ())):
        if "callback_url" in holder:
            holder["callback_url"] = WEBHOOK
        options = holder.get("label_spec", {}).get("options")
        if options and len(set(options)) < 2:
            options.append(options[0] + "x")
    if "idempotency_key" in case.body and case.headers:
        case.headers.pop("Idempotency-Key", None)
