"""Several sources as one: order of arrival, the first error, everything closed."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from serverless_triton.scheduler.gateway.openai.merge import merged


class Source:
    """Gives what is put into it; None ends it."""

    def __init__(self):
        self.items = asyncio.Queue()
        self.open = False

    async def read(self):
        self.open = True
        try:
            while (item := await self.items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.open = False


@pytest.fixture
def sources():
    return [Source(), Source()]


async def test_items_come_in_order_of_arrival_until_all_have_ended(sources):
    first, second = sources
    async with aclosing(merged([first.read(), second.read()])) as items:
        second.items.put_nowait("a")
        assert await anext(items) == (1, "a")
        first.items.put_nowait("b")
        assert await anext(items) == (0, "b")
        first.items.put_nowait(None)
        second.items.put_nowait("c")
        second.items.put_nowait(None)
        assert [item async for item in items] == [(1, "c")]
    assert not first.open
    assert not second.open


async def test_the_first_error_closes_the_others(sources):
    first, second = sources
    first.items.put_nowait(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        async for _ in merged([first.read(), second.read()]):
            pass
    assert not second.open


@pytest.mark.parametrize("count", [1, 2])
async def test_closing_it_closes_every_source(sources, count):
    items = merged([source.read() for source in sources[:count]])
    sources[0].items.put_nowait("a")
    await anext(items)
    await items.aclose()
    assert not any(source.open for source in sources)


async def test_nothing_is_read_ahead_but_one_item_of_each(sources):
    first, second = sources
    for source in sources:
        for item in range(10):
            source.items.put_nowait(item)
    items = merged([first.read(), second.read()])
    await anext(items)
    for _ in range(100):
        await asyncio.sleep(0)
    assert first.items.qsize() + second.items.qsize() >= 20 - 4  # one told, one in the queue, one in each one's hands
    await items.aclose()
