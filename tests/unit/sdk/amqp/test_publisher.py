"""The publisher: what it does after each kind of failure, and what it bounds. In virtual time."""

import asyncio

import pytest
from aiormq import exceptions
from asg_gateway._errors import BrokerRefusedError, BrokerUnavailableError
from asg_gateway.amqp._producing.channels import Failure
from asg_gateway.amqp._producing.messages import Message

from tests.support.virtual_time_loop import in_virtual_time
from tests.unit.sdk.amqp.fake_broker import CONFIRM_TIMEOUT, DEADLINE, FakeBroker, FakeChannel, message


def now() -> float:
    return asyncio.get_running_loop().time()


def attempts(broker: FakeBroker, key: str) -> list[int]:
    """Return the numbers of the channels on which the message was published."""
    return [channel for published, channel in broker.published if published == key]


@in_virtual_time
async def test_messages_share_one_channel_and_respect_the_limit() -> None:
    broker = FakeBroker()
    publisher = broker.publisher(in_flight=7)
    await asyncio.gather(*[publisher.publish(message(f"k{number}")) for number in range(50)])
    assert (len(broker.published), broker.most_in_flight, len(broker.channels)) == (50, 7, 1)


@in_virtual_time
async def test_bytes_in_flight_are_bounded_but_a_large_message_passes() -> None:
    broker = FakeBroker()
    publisher = broker.publisher(size=2 * len(message("k").body) + 1)
    large = message("large")._replace(body=b"x" * 10_000)
    await asyncio.gather(*[publisher.publish(each) for each in (message("a"), large, message("b"), message("c"))])
    assert broker.most_in_flight == 2
    assert [key for key, _ in broker.published] == ["a", "large", "b", "c"]


@in_virtual_time
async def test_submissions_of_one_key_go_one_after_another() -> None:
    """The channel of the test fails if two are in flight together. A cancelled one lets the next one go."""
    broker = FakeBroker()
    publisher = broker.publisher()
    calls = [asyncio.create_task(publisher.publish(message("same"))) for _ in range(20)]
    await asyncio.sleep(0.005)
    calls[0].cancel()
    calls[7].cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes].count(True) == 2
    assert len(broker.published) == 19
    assert publisher._turns._waiting == {}


@in_virtual_time
async def test_cancelled_calls_give_their_room_back() -> None:
    broker = FakeBroker()
    publisher = broker.publisher(in_flight=2)
    calls = [asyncio.create_task(publisher.publish(message(f"k{number}"))) for number in range(6)]
    await asyncio.sleep(0.005)
    for number in (0, 3, 4):
        calls[number].cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert publisher._room.in_use == 0
    assert [key for key, _ in broker.published] == ["k0", "k1", "k2", "k5"]


@in_virtual_time
async def test_nacked_message_uses_another_channel_once_the_first_is_old() -> None:
    """RabbitMQ 3.10 nacks everything on a channel that has met a full queue. The others on it are not disturbed."""
    broker = FakeBroker()
    broker.answer = lambda each, channel: Failure.NACKED if each.key == "bad" and channel.number == 0 else None
    publisher = broker.publisher()
    await publisher.publish(message("good"))
    await publisher.publish(message("bad"))
    assert attempts(broker, "bad")[-2:] == [0, 1]
    assert len(attempts(broker, "bad")) > 3
    assert 2.0 < now() < 10.0
    await asyncio.sleep(0)
    assert broker.closed == [0]


@in_virtual_time
async def test_returned_message_is_published_again_on_the_same_channel() -> None:
    broker = FakeBroker()
    broker.answer = lambda _message, _channel: Failure.RETURNED if now() < 5 else None
    await broker.publisher().publish(message("k"))
    assert set(attempts(broker, "k")) == {0}
    assert now() < 15


@in_virtual_time
async def test_message_that_is_always_returned_fails_at_the_deadline_and_says_why() -> None:
    broker = FakeBroker()
    broker.answer = lambda _message, _channel: Failure.RETURNED
    with pytest.raises(
        BrokerUnavailableError, match=r"within the deadline of 100 s.*topology of the service is missing"
    ):
        await broker.publisher().publish(message("k"))
    assert now() == pytest.approx(DEADLINE)


@in_virtual_time
async def test_unanswered_message_uses_another_channel_and_leaves_the_others_theirs() -> None:
    broker = FakeBroker()
    broker.delay = CONFIRM_TIMEOUT + 1
    broker.answer = lambda each, channel: Failure.UNANSWERED if each.key == "bad" and channel.number == 0 else None
    publisher = broker.publisher()
    await asyncio.gather(publisher.publish(message("bad")), publisher.publish(message("slow")))
    assert (attempts(broker, "bad"), attempts(broker, "slow")) == ([0, 1], [0])
    assert broker.closed == [0]


@in_virtual_time
async def test_blocked_connection_fails_calls_in_flight_and_waiting_at_the_deadline() -> None:
    """Those that wait for their turn do not begin to wait once more."""
    broker = FakeBroker()
    broker.answer = lambda _message, _channel: Failure.UNANSWERED
    publisher = broker.publisher(in_flight=3)
    calls = [publisher.publish(message(f"k{number}")) for number in range(10)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {BrokerUnavailableError}
    assert len({id(outcome) for outcome in outcomes}) == 10
    assert now() == pytest.approx(DEADLINE)


@in_virtual_time
async def test_waiting_for_a_turn_does_not_count_while_others_are_confirmed() -> None:
    broker = FakeBroker()
    broker.delay = 9.0
    publisher = broker.publisher(in_flight=1)
    await asyncio.gather(*[publisher.publish(message(f"k{number}")) for number in range(30)])
    assert now() > 2 * DEADLINE


@in_virtual_time
async def test_lost_connection_is_replaced_once_for_all_messages() -> None:
    broker = FakeBroker()
    publisher = broker.publisher()
    calls = [asyncio.create_task(publisher.publish(message(f"k{number}"))) for number in range(40)]
    await asyncio.sleep(0.005)
    broker.is_open = False
    broker.channels[0].end(ConnectionError("reset"))
    await asyncio.gather(*calls)
    assert (broker.connections, len(broker.channels)) == (2, 2)
    assert {tuple(attempts(broker, f"k{number}")) for number in range(40)} == {(0, 1)}


@in_virtual_time
async def test_unreachable_broker_is_tried_with_pauses_whatever_the_number_of_calls() -> None:
    broker = FakeBroker()
    broker.unreachable = 4
    publisher = broker.publisher()
    await asyncio.gather(*[publisher.publish(message(f"k{number}")) for number in range(60)])
    assert broker.connections == 5
    assert now() == pytest.approx(1 + 2 + 4 + 8, abs=0.1)


@in_virtual_time
async def test_unreachable_broker_fails_each_call_at_its_deadline() -> None:
    broker = FakeBroker()
    broker.unreachable = 1000
    with pytest.raises(
        BrokerUnavailableError, match="within the deadline of 100 s: RabbitMQ at host:1: connection ref"
    ):
        await broker.publisher().publish(message("k"))
    assert now() == pytest.approx(DEADLINE)


def refuse(*keys: str) -> FakeBroker:
    """Return a broker that closes the channel because of these messages."""
    broker = FakeBroker()

    def answer(each: Message, _channel: FakeChannel) -> Failure | None:
        return Failure.REFUSED if each.key in keys else None

    broker.answer = answer
    return broker


@in_virtual_time
async def test_message_that_closes_the_channel_is_found_and_the_others_are_confirmed() -> None:
    broker = refuse("bad")
    broker.refusal = exceptions.ChannelPreconditionFailed("message too large")
    publisher = broker.publisher()
    calls = [publisher.publish(message(key)) for key in ("a", "b", "bad", "c")]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if outcome] == [BrokerRefusedError]
    assert "RabbitMQ refuses the message (" in str(outcomes[2])
    await publisher.publish(message("d"))


@in_virtual_time
async def test_message_that_is_to_be_published_alone_waits_for_an_unreachable_broker_with_pauses() -> None:
    broker = refuse("bad")
    publisher = broker.publisher()
    calls = [asyncio.create_task(publisher.publish(message(key))) for key in ("a", "bad")]
    await asyncio.sleep(0.001)
    broker.is_open, broker.unreachable = False, 1000
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {BrokerUnavailableError}
    assert now() == pytest.approx(DEADLINE)
    assert broker.connections < 100


@in_virtual_time
async def test_message_that_is_refused_alone_fails_at_once() -> None:
    broker = refuse("bad")
    with pytest.raises(BrokerRefusedError):
        await broker.publisher().publish(message("bad"))
    assert len(broker.published) == 1


@in_virtual_time
async def test_missing_permission_is_found_out_once_for_all_messages() -> None:
    keys = [f"k{number}" for number in range(30)]
    broker = refuse(*keys)
    broker.refusal = exceptions.ChannelAccessRefused("write access refused")
    publisher = broker.publisher()
    outcomes = await asyncio.gather(*[publisher.publish(message(key)) for key in keys], return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {BrokerRefusedError}
    assert "may not publish to asg.submissions with the routing key task.submitted.acme" in str(outcomes[0])
    assert len(broker.channels) == 2


@in_virtual_time
async def test_refused_login_fails_every_call_at_once_with_an_error_of_its_own() -> None:
    broker = FakeBroker()

    async def refused() -> FakeBroker:
        raise BrokerRefusedError("RabbitMQ at host:1: the login was refused")

    broker.connect = refused  # type: ignore[method-assign]
    calls = [broker.publisher().publish(message(key)) for key in "abc"]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {BrokerRefusedError}
    assert len({id(outcome) for outcome in outcomes}) == 3
    assert now() == 0
