"""A TCP proxy that misbehaves on demand: latency, black hole, reset in the middle of a frame, slow close."""

import asyncio
import contextlib
import socket
import struct

_Pair = tuple[asyncio.StreamWriter, asyncio.StreamWriter]
_LINGER_ZERO = struct.pack("ii", 1, 0)
"""With it, close() sends a reset."""


class Proxy:
    """Listens on a port of its own and forwards to the port `target`.

    `cuts` and `slow_closes` count the connections that the proxy has reset or closed slowly, `held_bytes` counts what
    it has held in black holes, and `latency` is in seconds.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.latency = 0.0
        self.cuts = 0
        self.slow_closes = 0
        self.held_bytes = 0
        self._cutting = False
        self._open = asyncio.Event()
        self._open.set()
        self._pairs: set[_Pair] = set()
        self._slow: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()

    def black_hole(self, on: bool) -> None:
        """Hold all data until the black hole is switched off. The connections stay open."""
        self._open.clear() if on else self._open.set()

    def cut(self) -> None:
        """Forward half of the next data on any connection, then reset all connections."""
        self._cutting = bool(self._pairs)

    def cut_now(self) -> None:
        """Reset every connection at once."""
        for pair in list(self._pairs):
            self._reset(pair)

    async def close_slowly(self, seconds: float) -> None:
        """Abort the connections to the target at once, and those to the clients `seconds` later."""
        pairs = list(self._pairs)
        self._slow.update(pairs)
        for _, far in pairs:
            far.transport.abort()
            self.slow_closes += 1
        await asyncio.sleep(seconds)
        for near, _ in pairs:
            near.transport.abort()
        self._slow.difference_update(pairs)

    async def _accept(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._open.wait()
            far_reader, far = await asyncio.open_connection("127.0.0.1", self.target)
            try:
                await self._forward(reader, near, far_reader, far)
            finally:
                far.close()
                if (near, far) not in self._slow:
                    near.close()
        except (OSError, asyncio.CancelledError):
            near.close()
        finally:
            self._tasks.discard(task)

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        near: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far: asyncio.StreamWriter,
    ) -> None:
        """Forward in both directions until one of them ends."""
        self._pairs.add((near, far))
        pumps = [asyncio.create_task(self._pump(reader, far)), asyncio.create_task(self._pump(far_reader, near))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._pairs.discard((near, far))
            for pump in pumps:
                pump.cancel()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not self._open.is_set():
                    self.held_bytes += len(data)
                    await self._open.wait()
                if self.latency:
                    await asyncio.sleep(self.latency)
                if self._cutting and len(data) > 1:
                    self._cutting = False
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    self.cut_now()
                    return
                writer.write(data)
                await writer.drain()

    def _reset(self, pair: _Pair) -> None:
        for writer in pair:
            connection = writer.get_extra_info("socket")
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
            writer.transport.abort()
        self._pairs.discard(pair)
        self.cuts += 1
