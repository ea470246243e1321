"""The network of one host, as a process that stands between it and all others: it can be slow, or cut.

Connections to `addresses` are forwarded to the same ports of another address of this machine.
"""

import asyncio
import threading
from collections.abc import Sequence


class Forwarder:
    """Use it as a context manager. While it is `cut` nothing passes and nothing is closed, as when a cable is pulled.

    Args:
        outside: the address of this machine that others know, such as "127.0.2.1".
        inside: the address at which the host listens.
        ports: the ports to forward.
    """

    def __init__(self, outside: str, inside: str, ports: Sequence[int]):
        self._outside, self._inside, self._ports = outside, inside, ports
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._open.set()
        self._delay = 0.0
        self._tasks: set[asyncio.Task] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Forwarder":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *exception) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def cut(self) -> None:
        """Let nothing pass from now on."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def mend(self, delay: float = 0.0) -> None:
        """Let everything pass, each piece `delay` seconds later than it came."""
        self._delay = delay
        self._loop.call_soon_threadsafe(self._open.set)

    async def _listen(self) -> None:
        for port in self._ports:

            async def connected(reader, writer, port=port):
                try:
                    other_reader, other_writer = await asyncio.open_connection(self._inside, port)
                except OSError:
                    return writer.close()
                await asyncio.gather(self._pass_on(reader, other_writer), self._pass_on(other_reader, writer))

            await asyncio.start_server(connected, self._outside, port)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                await self._open.wait()
                await asyncio.sleep(self._delay)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            await self._open.wait()
            writer.close()
