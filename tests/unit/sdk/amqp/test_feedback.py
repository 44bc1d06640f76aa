"""The end of the subscription of a Feedback."""

import asyncio

import pytest
from asg_gateway.amqp import Feedback
from asg_gateway.amqp._consuming.subscription import Subscription

URL = "amqp://customer:s3cret@127.0.0.1:1/vhost"


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Return an event that makes every subscription fail."""
    fail = asyncio.Event()

    async def run(subscription: Subscription) -> None:
        subscription.connected.set()
        await fail.wait()
        raise TypeError("a defect")

    monkeypatch.setattr(Subscription, "run", run)
    return fail


async def test_iteration_raises_the_error_of_its_subscription(broken: asyncio.Event) -> None:
    async with Feedback(URL) as feedback:
        waiting = asyncio.create_task(anext(feedback))
        await asyncio.sleep(0)
        broken.set()
        for reports in (waiting, anext(feedback)):
            with pytest.raises(TypeError, match="a defect"):
                await asyncio.wait_for(reports, 1)


async def test_iteration_after_the_end_is_an_error_that_says_so(broken: asyncio.Event) -> None:
    async with Feedback(URL) as feedback:
        pass
    with pytest.raises(RuntimeError, match="this Feedback is closed"):
        await asyncio.wait_for(anext(feedback), 1)
