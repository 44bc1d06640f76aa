"""A shim on SQLite and the embedded broker that listens on a real socket."""

import asyncio

import httpx

from ingest.admission import Admission
from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.domain.customers import ApiKey, Customer, hash_api_key, key_id_of
from ingest.domain.ports import Publisher, Store
from ingest.parsing.parser import SubmissionParser
from ingest.serving import listen
from ingest.shim import Shim, shim_server
from ingest.shim.http.body import BodyMemoryBudget

HOOK = "https://a.example/hook"


class ShimHarness:
    """A running shim. `client` sends requests to it as the customer `c`."""

    def __init__(
        self,
        store: Store,
        broker: EmbeddedBroker,
        publisher: Publisher,
        memory: BodyMemoryBudget | None = None,
        parser: SubmissionParser | None = None,
    ) -> None:
        self.store = store
        self.broker = broker
        self.port = 0
        self.client: httpx.AsyncClient
        self.app = Shim(store=store, publisher=publisher, admission=Admission(store), memory=memory, parser=parser)
        self._server = shim_server(self.app, 5)

    async def __aenter__(self) -> "ShimHarness":
        listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        await self.add_customer(Customer(cust_id="c", monthly_quota=2000, webhooks=frozenset({HOOK})), "key")
        self.client = self.client_of("key")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        self._server.should_exit = True
        await self._task
        await self.app.drain()

    async def add_customer(self, customer: Customer, api_key: str) -> None:
        await self.store.save_customer(customer)
        hashed = hash_api_key(api_key)
        key = ApiKey(key_id=key_id_of(hashed), cust_id=customer.cust_id, key_hash=hashed, created_at=1)
        await self.store.save_key(key)

    def client_of(self, api_key: str) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {api_key}"}
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=30)

    async def raw(self, request: bytes) -> bytes:
        """Send bytes; return what the server sends until it closes the connection. Raises TimeoutError after 10 s."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        try:
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()
