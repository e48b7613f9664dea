"""Several asynchronous sources as one, nothing read ahead of the reader but one item of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")


async def merged(sources: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[tuple[int, Item], None]:
    """Every item with its source's index, in order of arrival. The first error ends it; its end closes every source."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as only:
            async for item in only:
                yield 0, item
        return
    arrived: asyncio.Queue[tuple[int, Item] | BaseException | None] = asyncio.Queue(maxsize=1)
    tasks = [asyncio.create_task(_pump(index, source, arrived)) for index, source in enumerate(sources)]
    try:
        running = len(tasks)
        while running:
            found = await arrived.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                running -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    index: int, source: AsyncGenerator[Item, None], arrived: asyncio.Queue[tuple[int, Item] | BaseException | None]
) -> None:
    try:
        async with aclosing(source) as items:
            async for item in items:
                await arrived.put((index, item))
        await arrived.put(None)
    except Exception as error:  # noqa: BLE001 - the reader raises it
        await arrived.put(error)
