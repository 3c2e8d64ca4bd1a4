"""Messages as lines of JSON on a TCP connection between two programs on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from amptalk_otel.demo.runtime import Message


class Gateway:
    """Stands for an agent at the other end: an agent that is connected to it sends to it as to any other."""

    def __init__(self, agent_id: str, name: str, writer: asyncio.StreamWriter) -> None:
        self.agent_id = agent_id
        self.name = name
        self._writer = writer

    async def enqueue_message(self, message: Message) -> None:
        self._writer.write(message.to_json().encode() + b"\n")
        await self._writer.drain()


async def deliver_messages(reader: asyncio.StreamReader, deliver: Callable[[Message], Awaitable[object]]) -> None:
    """Read messages and deliver them, until the other end closes the connection."""
    while line := await reader.readline():
        await deliver(Message.from_json(line))
