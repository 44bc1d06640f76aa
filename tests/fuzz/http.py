"""Hostile requests over real connections."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator

from tests.fuzz import bodies
from tests.fuzz.world import CUSTOMER, World

_TYPES = ("application/json", "application/json; charset=utf-8", "text/plain", "application/xml", "", "a" * 3000, "\0")
_NAMES = ("X-A", "Cookie", "X-Request-Id", "Traceparent", "Tracestate", "Accept", "Origin", "X-Forwarded-For")
_JUNK = ("", "a" * 5000, "\xff\xfe", "a,b;c=d", "00-" + "0" * 32 + "-" + "0" * 16 + "-00", "{}", "%00", '"')


class Requests:
    """Sends bodies over keep-alive connections and keeps what was answered.

    `statuses` counts answers, 0 where the connection ended without one. `ids` has every id that a 2xx has told.
    """

    def __init__(self, world: World, seed: int, large: float) -> None:
        self._world = world
        self._seed = seed
        self._large = large
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.ids: set[str] = set()

    async def send(self, numbers: range, connections: int = 32) -> None:
        queue = iter(numbers)
        await asyncio.gather(*[self._lane(queue) for _ in range(connections)])

    async def _lane(self, numbers: Iterator[int]) -> None:
        stream = None
        for number in numbers:
            random_ = random.Random(f"{self._seed}.{number}")
            path, head, body = self._request(random_, f"{self._seed}.{number}")
            for again in (False, True):
                if stream is None:
                    stream = await asyncio.open_connection("127.0.0.1", self._world.port)
                status, answer, keep = await _exchange(*stream, head + body)
                self._judge(status, answer, path, body, again)
                if not keep:
                    stream[1].close()
                    stream = None
                if status not in (200, 202) or random_.random() > 0.1:
                    break
        if stream is not None:
            stream[1].close()

    def _request(self, random_: random.Random, key: str) -> tuple[str, bytes, bytes]:
        path = random_.choices(
            ("/v1/tasks", "/v1/tasks/batch", "/v1/tasks/../x", "/v1/tasks/%00", "/"), (60, 30, 1, 1, 1)
        )[0]
        make = bodies.batch if path.endswith("batch") else bodies.single
        body = bodies.huge(random_, key) if random_.random() < self._large else make(random_, key)
        odd = random_.random
        method = (
            "POST" if odd() < 0.98 else random_.choice(("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "BREW", "TRACE"))
        )
        headers = [f"{method} {path} HTTP/1.1", "Host: x"]
        api_key = self._world.keys[CUSTOMER] if odd() < 0.98 else random_.choice(("", "x", "é", "a" * 9000, "\t"))
        headers.append(f"Authorization: Bearer {api_key}")
        headers.append(f"Content-Type: {_TYPES[0] if odd() < 0.95 else random_.choice(_TYPES)}")
        if path.endswith("batch"):
            headers.append("Prefer: return=representation")
        if odd() < 0.1:
            headers.append(f"Idempotency-Key: {key if odd() < 0.5 else random_.choice(_JUNK)}")
        headers += [f"{random_.choice(_NAMES)}: {random_.choice(_JUNK)}" for _ in range(random_.randrange(3))]
        if odd() < 0.05:
            headers.append("Transfer-Encoding: chunked")
            body = b"".join(
                b"%x\r\n%b\r\n" % (len(body[at : at + 50]), body[at : at + 50])
                for at in range(0, min(len(body), 5000), 50)
            )
            body += b"0\r\n\r\n"
        else:
            headers.append(f"Content-Length: {len(body)}")
        return path, ("\r\n".join(headers) + "\r\n\r\n").encode("latin-1"), body

    def _judge(self, status: int, answer: bytes, path: str, body: bytes, again: bool) -> None:
        self.statuses[status] += 1
        if status >= 500 or (again and status != 200):
            self.wrong.append(f"{status} {answer[:200]!r} for {path} {body[:300]!r}")
        if status in (200, 202):
            told = json.loads(answer)
            self.ids.update(told.get("task_ids") or [told["task_id"]])
        elif status >= 400 and answer[:1] == b"{" and not json.loads(answer)["error"]:
            self.wrong.append(f"{status} without a word for {body[:300]!r}")


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, bytes, bool]:
    """(status, body, whether the connection can be used again); status 0 where none came."""
    try:
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        lines = head.decode("latin-1").lower().split("\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith("content-length:")), 0)
        status = int(head.split(b" ", 2)[1])
        if request.startswith(b"HEAD"):
            length = 0
        answer = await asyncio.wait_for(reader.readexactly(length), 30)
    except TimeoutError:
        return 599, b"no answer in 30 s", False
    except (asyncio.IncompleteReadError, OSError):
        return 0, b"", False
    return status, answer, "connection: close" not in lines
