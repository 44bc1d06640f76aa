"""Submit labelling tasks to the ASG gateway.

>>> from asg_gateway import ASGGatewayClient
>>> client = ASGGatewayClient(api_key)                                     # doctest: +SKIP
>>> client.submit_task(task_type="sentiment", data_url=..., label_spec=...)  # doctest: +SKIP

To submit any number of tasks, use the command `asg-submit` for a file and `submit_many` in a program.
"""

from asg_gateway._async_client import AsyncASGGatewayClient
from asg_gateway._bulk.many import Submitted, submit_many
from asg_gateway._client import ASGGatewayClient
from asg_gateway._errors import (
    APIError,
    ASGGatewayError,
    AuthenticationError,
    BrokerRefusedError,
    BrokerUnavailableError,
    ConflictError,
    CustomerDisabledError,
    InvalidEventError,
    InvalidRequestError,
    InvalidTaskError,
    NotFoundError,
    PartialBatchError,
    QuotaExhaustedError,
    RateLimitedError,
    ServerError,
    TimedOutError,
    TransportError,
)
from asg_gateway._results import BatchResult, TaskResult
from asg_gateway._tasks import LabelSpec, Task
from asg_gateway._version import __version__

__all__ = [
    "APIError",
    "ASGGatewayClient",
    "ASGGatewayError",
    "AsyncASGGatewayClient",
    "AuthenticationError",
    "BatchResult",
    "BrokerRefusedError",
    "BrokerUnavailableError",
    "ConflictError",
    "CustomerDisabledError",
    "InvalidEventError",
    "InvalidRequestError",
    "InvalidTaskError",
    "LabelSpec",
    "NotFoundError",
    "PartialBatchError",
    "QuotaExhaustedError",
    "RateLimitedError",
    "ServerError",
    "Submitted",
    "Task",
    "TaskResult",
    "TimedOutError",
    "TransportError",
    "__version__",
    "submit_many",
]
