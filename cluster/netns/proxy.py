"""A long and lossy way to a service: a TCP proxy that delays what it passes on, for kernels without `netem`.

TCP hides lost packets: an application sees that data come later, by a retransmission's time-out. So the proxy delays
every piece by `delay_s`, and a random share `loss` of them by `RETRANSMIT_S` more; order and content stay.
"""

import asyncio
import random
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

RETRANSMIT_S = 0.2  # Linux's shortest time-out of a retransmission
_PIECE = 2**16
_WINDOW = 64  # pieces on their way, as many as a receive window of 4 MiB has
_START_S = 10.0


class LongWay:
    """The proxy as a context manager, in a thread of its own. `delay_s` and `loss` may be set at any time."""

    def __init__(self, address: str, upstream: tuple[str, int], *, delay_s: float = 0.0, loss: float = 0.0) -> None:
        """Listens on a free port of `address` and passes connections on to `upstream`; delays are of one direction."""
        self.delay_s, self.loss = delay_s, loss
        self.port = 0
        self._address, self._upstream = address, upstream
        self._draw = random.Random(0)
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True, name="long way")

    def __enter__(self) -> Self:
        """Listens."""
        self._thread.start()
        if not self._ready.wait(_START_S):
            raise TimeoutError(f"the proxy does not listen on {self._address} after {_START_S:.0f} s")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends all connections."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, self._address, 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(_end_tasks())
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*self._upstream)
        except OSError:  # the service is gone: so is the connection
            writer.close()
            return
        try:
            await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))
        finally:
            writer.close()
            back.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction of a connection, until it ends."""
        travelling: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WINDOW)
        arriving = asyncio.create_task(self._arrive(travelling, writer))
        with suppress(OSError):
            while data := await reader.read(_PIECE):
                await travelling.put((self._loop.time() + self._delay(), data))
        await travelling.put((0.0, b""))
        await arriving

    async def _arrive(self, travelling: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        """Writes each piece when its time has come; after the last one, says so."""
        with suppress(OSError):
            while (piece := await travelling.get())[1]:
                await asyncio.sleep(piece[0] - self._loop.time())
                writer.write(piece[1])
                await writer.drain()
            writer.write_eof()

    def _delay(self) -> float:
        return self.delay_s + (RETRANSMIT_S if self._draw.random() < self.loss else 0.0)


async def _end_tasks() -> None:
    """Ends all other tasks of the loop."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
