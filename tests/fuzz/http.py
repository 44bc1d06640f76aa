"""Hostile HTTP requests over real connections."""

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
    """Sends requests over keep-alive connections and collects the answers.

    `statuses` counts the answers by status; 0 means that the connection ended without an answer. `ids` has the task ids
    of every 2xx answer, `wrong` describes the answers that violate an invariant.
    """

    def __init__(self, world: World, seed: int, large: float) -> None:
        self._world = world
        self._seed = seed
        self._large = large
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.ids: set[str] = set()

    async def send(self, numbers: range, connections: int = 32) -> None:
        """Send one request for each number, and about a tenth of the accepted ones again."""
        remaining = iter(numbers)
        await asyncio.gather(*[self._send_on_one_connection(remaining) for _ in range(connections)])

    async def _send_on_one_connection(self, numbers: Iterator[int]) -> None:
        stream = None
        for number in numbers:
            rng = random.Random(f"{self._seed}.{number}")
            path, head, body = self._request(rng, f"{self._seed}.{number}")
            for is_replay in (False, True):
                if stream is None:
                    stream = await asyncio.open_connection("127.0.0.1", self._world.port)
                status, answer, keep = await _exchange(*stream, head + body)
                self._judge(status, answer, path, body, is_replay)
                if not keep:
                    stream[1].close()
                    stream = None
                if status not in (200, 202) or rng.random() > 0.1:
                    break
        if stream is not None:
            stream[1].close()

    def _request(self, rng: random.Random, key: str) -> tuple[str, bytes, bytes]:
        path = rng.choices(("/v1/tasks", "/v1/tasks/batch", "/v1/tasks/../x", "/v1/tasks/%00", "/"), (60, 30, 1, 1, 1))[
            0
        ]
        make = bodies.batch if path.endswith("batch") else bodies.single
        body = bodies.huge(rng, key) if rng.random() < self._large else make(rng, key)
        chance = rng.random
        method = "POST" if chance() < 0.98 else rng.choice(("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "BREW", "TRACE"))
        headers = [f"{method} {path} HTTP/1.1", "Host: x"]
        api_key = self._world.keys[CUSTOMER] if chance() < 0.98 else rng.choice(("", "x", "é", "a" * 9000, "\t"))
        headers.append(f"Authorization: Bearer {api_key}")
        headers.append(f"Content-Type: {_TYPES[0] if chance() < 0.95 else rng.choice(_TYPES)}")
        if path.endswith("batch"):
            headers.append("Prefer: return=representation")
        if chance() < 0.1:
            headers.append(f"Idempotency-Key: {key if chance() < 0.5 else rng.choice(_JUNK)}")
        headers += [f"{rng.choice(_NAMES)}: {rng.choice(_JUNK)}" for _ in range(rng.randrange(3))]
        if chance() < 0.05:
            headers.append("Transfer-Encoding: chunked")
            body = b"".join(
                b"%x\r\n%b\r\n" % (len(body[at : at + 50]), body[at : at + 50])
                for at in range(0, min(len(body), 5000), 50)
            )
            body += b"0\r\n\r\n"
        else:
            headers.append(f"Content-Length: {len(body)}")
        return path, ("\r\n".join(headers) + "\r\n\r\n").encode("latin-1"), body

    def _judge(self, status: int, answer: bytes, path: str, body: bytes, is_replay: bool) -> None:
        self.statuses[status] += 1
        if status >= 500 or (is_replay and status != 200):
            self.wrong.append(f"{status} {answer[:200]!r} for {path} {body[:300]!r}")
        if status in (200, 202) and path != "/":  # GET / answers with a page
            document = json.loads(answer)
            self.ids.update(document.get("task_ids") or [document["task_id"]])
        elif status >= 400 and answer[:1] == b"{" and not json.loads(answer)["error"]:
            self.wrong.append(f"{status} without an error text for {body[:300]!r}")


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, bytes, bool]:
    """Return (status, body, whether the connection can be used again). Without an answer, the status is 0 or 599."""
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
