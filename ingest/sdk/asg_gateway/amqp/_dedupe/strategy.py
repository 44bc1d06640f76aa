"""How a consumer handles each event once: what all strategies have in common, and the two without a database."""

import inspect
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from asg_gateway._errors import ASGGatewayError
from asg_gateway.amqp._events import Event

T = TypeVar("T")
Handler = Callable[..., Any]
MEMORY: Final = 100_000
"""Ids that `MemoryDedupe` remembers by default, about 20 MB."""


class RunInThread(Protocol):
    """Calls a function in a thread of the consumer."""

    async def __call__(self, function: Callable[..., T], *arguments: object) -> T: ...


class DedupeUnavailableError(ASGGatewayError):
    """The database with the ids of the events cannot be used now. The event is handled later.

    `__cause__` is the error of the database's driver.
    """


class Dedupe(ABC):
    """Decides whether an event was handled before, and calls the handler if it was not."""

    _takes: tuple[str, ...] = ("event",)
    """The arguments of the handler."""
    _coroutines: bool | None = None
    """Whether the handler must be a coroutine function; None: it may be one."""

    def check(self, handler: Handler) -> None:
        """Raise TypeError, which says what to change, if the handler does not suit this strategy."""
        if not callable(handler):
            raise TypeError("handler must be a function or a coroutine function")
        name = type(self).__name__ if type(self) is not NoDedupe else "dedupe=None"
        if self._coroutines is not None and is_coroutine_function(handler) != self._coroutines:
            wanted = "a coroutine function" if self._coroutines else "an ordinary function, not a coroutine function"
            raise TypeError(f"with {name} the handler must be {wanted}")
        try:
            inspect.signature(handler).bind(*self._takes)
        except TypeError:
            arguments = ", ".join(self._takes)
            raise TypeError(f"with {name} the handler is called as handler({arguments}); it takes others") from None
        except ValueError:
            return  # a handler without a signature, such as some built-in functions

    async def open(self, queue: str, in_thread: RunInThread) -> None:  # noqa: B027 - most need no preparation
        """Prepare for the events of a queue.

        Raises:
            DedupeUnavailableError: the database is unavailable; try again later.
            Exception: the configuration is wrong.
        """

    @abstractmethod
    async def handle(self, event: Event, queue: str, handler: Handler, in_thread: RunInThread) -> bool:
        """Call the handler unless the event was handled before; return whether it was called.

        Raises:
            DedupeUnavailableError: the database is unavailable. Nothing was done, or it is unknown whether it was.
            Exception: what the handler raises. Nothing was done.
        """

    def release_thread(self) -> None:  # noqa: B027 - most hold nothing
        """Release what the current thread holds, because it ends."""


class NoDedupe(Dedupe):
    """Calls the handler for every copy: the handler is idempotent."""

    async def handle(self, event: Event, queue: str, handler: Handler, in_thread: RunInThread) -> bool:
        await call(handler, event, in_thread=in_thread)
        return True


class MemoryDedupe(Dedupe):
    """Remembers events in memory, for tests: after a restart, copies are handled again.

    Args:
        size: how many events are remembered.
    """

    def __init__(self, size: int = MEMORY) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError("size must be at least 1")
        self._size = size
        self._handled: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def handle(self, event: Event, queue: str, handler: Handler, in_thread: RunInThread) -> bool:
        key = (queue, event.id)
        if key in self._handled:
            return False
        await call(handler, event, in_thread=in_thread)
        self._handled[key] = None
        if len(self._handled) > self._size:
            self._handled.popitem(last=False)
        return True


async def call(handler: Handler, *arguments: object, in_thread: RunInThread) -> None:
    """Call a handler: a coroutine function here, another one in a thread."""
    if is_coroutine_function(handler):
        await handler(*arguments)
    else:
        await in_thread(call_blocking, handler, *arguments)


def call_blocking(handler: Handler, *arguments: object) -> None:
    """Call a handler that is not a coroutine function. Raises TypeError if it returns an awaitable nevertheless."""
    result = handler(*arguments)
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError("the handler returned a coroutine, which nothing awaits: make the handler itself `async def`")


def is_coroutine_function(handler: Handler) -> bool:
    """Return whether a call of the handler must be awaited."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004
