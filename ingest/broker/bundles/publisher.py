"""Publishes the messages of one call that may travel together as bundles."""

from collections.abc import Sequence

from ingest.broker.decorators import PublisherDecorator
from ingest.domain.addresses import route_of
from ingest.domain.bundles import MAX_BYTES, MAX_SUBMISSIONS, pack
from ingest.domain.messages import Message, PublishOutcome


class BundlingPublisher(PublisherDecorator):
    """`domain.ports.Publisher`. The messages of a bundle have the same outcome."""

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        bundles = _bundles(messages)
        if len(bundles) == len(messages):
            return await self._publisher.publish(messages)
        packed = [
            messages[bundle[0]] if len(bundle) == 1 else pack([messages[index] for index in bundle])
            for bundle in bundles
        ]
        outcomes = [PublishOutcome.UNSENT] * len(messages)
        for bundle, outcome in zip(bundles, await self._publisher.publish(packed), strict=True):
            for index in bundle:
                outcomes[index] = outcome
        return outcomes


def _bundles(messages: Sequence[Message]) -> list[list[int]]:
    """Return the positions of the messages, grouped into bundles. One that travels alone is a bundle of one."""
    bundles: list[list[int]] = []
    open_bundles: dict[str, tuple[list[int], int]] = {}
    for index, message in enumerate(messages):
        if not message.may_be_bundled:
            bundles.append([index])
            continue
        route = route_of(message.routing_key)
        bundle, size = open_bundles.get(route, (None, 0))
        size += len(message.body)
        if bundle is None or len(bundle) == MAX_SUBMISSIONS or size > MAX_BYTES:
            bundle, size = [], len(message.body)
            bundles.append(bundle)
        bundle.append(index)
        open_bundles[route] = bundle, size
    return bundles
