"""The rules for the bodies of tasks and batches, and the sentences for broken rules.

The models are pydantic `TypedDict`s, so validated data stays plain dicts, which are stored and sent.
Types are strict: "3" and true are not integers, null is not a string.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NotRequired, cast, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from typing_extensions import TypedDict

from ingest.domain.errors import MAX_FIELD_ERRORS, FieldError, InvalidSubmission, Reason
from ingest.domain.urls import MAX_URL, URL_PATTERN, explain

MAX_BATCH = 1_000
MAX_DEPTH = 32
NOT_REGISTERED = "is not one of your registered webhook URLs"
_TOO_MANY = 5_000
_MAX_FIELDS = 100
"""An object with more names is refused before pydantic makes an error for each of a million unknown ones."""

_CONTAINERS = frozenset({dict, list})

# The patterns are published in the API's documents, so they must mean the same in every engine. pydantic's (Rust),
# Python's and ECMAScript's differ in `\s`, in `\p{C}` and in inline flags.
_BLANK = r"\u0009-\u000d\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
# A key has no control characters, no line ends, no invisible characters and none that change the writing direction.
_KEY_PATTERN = r"^[^\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\uffff]*$"


def _integral(value: object) -> object:
    """Turn 3.0 into 3: JSON Schema treats both as the same integer."""
    return int(value) if type(value) is float and value.is_integer() else value


def _two_distinct(options: list[str]) -> list[str]:
    if len(set(options)) < 2:
        raise PydanticCustomError("options_distinct", "must have at least 2 distinct entries")
    return options


def _nested_at_most(depth: int) -> Any:
    def check(value: dict[str, Any]) -> dict[str, Any]:
        # `question` and `options` are checked already; only additional names can nest.
        if len(value) > 2 and _deeper_than(value, depth):
            raise PydanticCustomError("too_deep", "is nested too deeply (at most {depth} levels)", {"depth": depth})
        return value

    return AfterValidator(check)


def _deeper_than(value: object, depth: int) -> bool:
    """Return whether arrays and objects are nested in more than `depth` levels; `value` is the first."""
    level: list[Any] = [value]
    for _ in range(depth):
        members = [container.values() if type(container) is dict else container for container in level]
        level = [member for container in members for member in container if type(member) in _CONTAINERS]
        if not level:
            return False
    return True


TaskType = Literal["image_classification", "text_classification", "sentiment", "moderation"]
TASK_TYPES: tuple[str, ...] = get_args(TaskType)
_URL_RULES = (
    "An https URL without credentials and invisible characters. Its host is a domain name in ASCII (`xn--` for other "
    "letters) or an IP address."
)
_URL = StringConstraints(pattern=URL_PATTERN, max_length=MAX_URL)
HttpsUrl = Annotated[str, Field(description=_URL_RULES), _URL]
CallbackUrl = Annotated[
    str,
    Field(description="Exactly one of the customer's registered webhook URLs; any other is refused with 400."),
    _URL,
]
IdempotencyKey = Annotated[
    str,
    Field(description="Supplied by the client, printable characters. A repeat returns the same id."),
    StringConstraints(min_length=1, max_length=255, pattern=_KEY_PATTERN),
]
NonBlank = Annotated[str, StringConstraints(min_length=1, pattern=rf"[^{_BLANK}]")]


class LabelSpec(TypedDict):
    """The question and the answers to choose from. Additional names are passed on."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    question: NonBlank
    options: Annotated[
        list[NonBlank],
        # Only the first wrong entry is reported: an error takes 400 bytes, and there may be a million.
        Field(min_length=2, description="At least 2 distinct entries.", fail_fast=True),
        AfterValidator(_two_distinct),
    ]


class TaskBody(TypedDict):
    """The body of `POST /v1/tasks`, and of one item of a batch."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    type: TaskType
    data_url: HttpsUrl
    label_spec: Annotated[LabelSpec, _nested_at_most(MAX_DEPTH)]
    consensus_threshold: NotRequired[
        Annotated[int, Field(ge=2, le=10, description="Default 3."), BeforeValidator(_integral)]
    ]
    callback_url: NotRequired[CallbackUrl]
    idempotency_key: NotRequired[IdempotencyKey]


class BatchBody(TypedDict):
    """The body of `POST /v1/tasks/batch`. A top-level `callback_url` applies to each task without one."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    tasks: Annotated[list[TaskBody], Field(min_length=1, max_length=MAX_BATCH)]
    callback_url: NotRequired[CallbackUrl]
    idempotency_key: NotRequired[IdempotencyKey]


TASK: Final = TypeAdapter[TaskBody](TaskBody)
BATCH: Final = TypeAdapter[BatchBody](BatchBody)
KEY: Final = TypeAdapter[str](IdempotencyKey)
_HTTPS_URL: Final = TypeAdapter[str](HttpsUrl)


def validate_task(data: object) -> TaskBody:
    """Return `data` (decoded JSON) as a task. Raises InvalidSubmission with every field error."""
    _refuse_many_fields(data, "body")
    try:
        return cast("TaskBody", TASK.validator.validate_python(data))
    except ValidationError as error:
        raise _invalid(error) from None


def validate_batch(data: object) -> BatchBody:
    """Return `data` (decoded JSON) as a batch. Raises InvalidSubmission with every field error."""
    _refuse_many_fields(data, "body")
    items = data.get("tasks") if isinstance(data, dict) else None
    if isinstance(items, list):
        for index, item in enumerate(items[:MAX_BATCH]):
            _refuse_many_fields(item, f"tasks[{index}]")
    try:
        return cast("BatchBody", BATCH.validator.validate_python(data))
    except ValidationError as error:
        raise _invalid(error) from None


def _refuse_many_fields(value: object, path: str) -> None:
    if isinstance(value, dict) and len(value) > _MAX_FIELDS:
        error = FieldError(path, f"{path} has {len(value)} fields: remove the unknown ones")
        raise InvalidSubmission(Reason.INVALID, error.error, (error,))


def validate_key(key: str, source: str) -> str:
    """Return the key if it is valid.

    Raises InvalidSubmission, whose sentence names `source`, where the key came from.
    """
    if key.isascii() and key.isprintable() and 0 < len(key) <= 255:
        return key  # the fast path, for nearly every key
    try:
        return KEY.validate_python(key)
    except ValidationError as error:
        sentence = _sentence(source, error.errors()[0])
        raise InvalidSubmission(Reason.INVALID, sentence, (FieldError(source, sentence),)) from None


def _invalid(error: ValidationError) -> InvalidSubmission:
    count = error.error_count()
    if count > _TOO_MANY:
        # A body of 8 MiB can contain a million wrong fields; listing them would delay all other requests.
        return InvalidSubmission(Reason.INVALID, f"body has {count} errors, too many to list")
    errors = []
    for detail in error.errors(include_url=False)[:MAX_FIELD_ERRORS]:
        field = _path(detail["loc"])
        errors.append(FieldError(field, _sentence(field, detail)))
    return InvalidSubmission(Reason.INVALID, errors[0].error, tuple(errors))


def _path(location: tuple[str | int, ...]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    # Names of fields come from the client, so what is echoed is bounded.
    return path[:200]


_EXPECTED: Mapping[str, str] = {
    "dict_type": "must be an object",
    "string_type": "must be a string",
    "list_type": "must be an array",
    "int_type": "must be an integer",
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "string_too_long": "must be at most {max_length} characters",
    "greater_than_equal": "must be between 2 and 10",
    "less_than_equal": "must be between 2 and 10",
    "literal_error": "must be one of image_classification, text_classification, sentiment, moderation",
    "int_from_float": "must be an integer",
    "recursion_loop": "is nested too deeply",
}


def _sentence(field: str, detail: ErrorDetails) -> str:
    if detail["type"] == "string_pattern_mismatch" and field.endswith("_url"):
        return f"{field} {explain(detail['input'])}"
    rule = _FIELD_RULES.get((field.rpartition(".")[2].partition("[")[0], detail["type"]))
    if rule is None:
        rule = _EXPECTED.get(detail["type"]) or detail["msg"]
    context = detail.get("ctx") or {}
    return f"{field or 'body'} {rule.format(**context) if detail['type'] in _EXPECTED else rule}"


_KEY_RULE = "must be 1 to 255 printable characters"
# Rules that are clearer with the name of the field than with the type of the error alone.
_FIELD_RULES: Mapping[tuple[str, str], str] = {
    ("question", "string_too_short"): "must not be empty",
    ("question", "string_pattern_mismatch"): "must not be empty",
    ("options", "string_too_short"): "must not be empty",
    ("options", "string_pattern_mismatch"): "must not be empty",
    ("options", "too_short"): "must have at least 2 entries",
    ("tasks", "too_short"): "must have at least 1 task",
    ("tasks", "too_long"): f"must have at most {MAX_BATCH} tasks",
    **{
        (name, kind): _KEY_RULE
        for name in ("idempotency_key", "Idempotency-Key", "message_id")
        for kind in ("string_too_short", "string_too_long", "string_pattern_mismatch")
    },
}


def url_problem(url: str) -> str | None:
    """Return what is wrong with a URL, such as "must not contain credentials"; None if it is valid.

    The rules are those of `data_url`. They apply to webhooks, too.
    """
    try:
        _HTTPS_URL.validate_python(url)
    except ValidationError as error:
        return _sentence("data_url", error.errors()[0]).removeprefix("data_url ")
    return None
