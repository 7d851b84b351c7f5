"""The door: what a connection is like that it let in."""

import asyncio
import socket

from shared.web.door import Door
from shared.web.server import _bind


def test_an_answer_in_two_writes_does_not_wait_for_the_first_to_be_acknowledged():
    """Head and body are two small writes: with Nagle's algorithm the second waits for a round trip of the link."""

    async def story():
        let_in = asyncio.get_running_loop().create_future()

        class Guest(asyncio.Protocol):
            def connection_made(self, transport):
                let_in.set_result(transport)

        door = Door(Guest, most=4)
        listeners = await _bind("127.0.0.1", 0)
        door.open(listeners)
        _, writer = await asyncio.open_connection(*listeners[0].getsockname())
        transport = await let_in
        nodelay = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()
        transport.close()
        await door.close()
        return nodelay

    assert asyncio.run(story()) != 0
