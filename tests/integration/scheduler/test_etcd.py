"""State and leadership in a real etcd of three members, which are killed, stopped and cut off."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager

import pytest

from serverless_triton.scheduler.state.etcd import EtcdStore
from serverless_triton.scheduler.state.etcd_election import EtcdElection
from serverless_triton.scheduler.state.etcd_link import EtcdLink
from serverless_triton.scheduler.state.protocol import (
    ABSENT,
    Change,
    DocumentTooLarge,
    NotLeading,
    StateConflict,
    StateUnavailable,
)
from tests.etcd_cluster import EtcdCluster

LEASE_S = 2
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def whole(etcd: EtcdCluster) -> EtcdCluster:
    """With all of its members, whatever the test before did to them."""
    etcd.start()
    return etcd


@pytest.fixture
async def store(whole: EtcdCluster, request: pytest.FixtureRequest) -> AsyncIterator[EtcdStore]:
    made = EtcdStore(EtcdLink(whole.endpoints), f"{request.node.name}/")
    yield made
    await made.close()


async def until(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    ends_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_s, "not in time"
        await asyncio.sleep(0.02)


async def test_a_document_comes_back_as_it_was_put(store: EtcdStore) -> None:
    revision = await store.put("kept/a", {"x": [1, 2.5, None, "é"]})
    document = await store.get("kept/a")
    assert document is not None
    assert (document.value, document.revision) == ({"x": [1, 2.5, None, "é"]}, revision)
    assert await store.get("kept/b") is None


async def test_a_write_that_expects_another_revision_changes_nothing(store: EtcdStore) -> None:
    first = await store.put("a", 1, expected=ABSENT)
    second = await store.put("a", 2, expected=first)
    for expected in (first, ABSENT):
        with pytest.raises(StateConflict):
            await store.put("a", 3, expected=expected)
    with pytest.raises(StateConflict):
        await store.delete("a", expected=first)
    document = await store.get("a")
    assert document is not None
    assert (document.value, document.revision) == (2, second)


async def test_of_many_who_write_at_once_one_wins(store: EtcdStore) -> None:
    revision = await store.put("a", "before")
    answers = await asyncio.gather(
        *(store.put("a", number, expected=revision) for number in range(20)), return_exceptions=True
    )
    assert sum(isinstance(answer, int) for answer in answers) == 1
    assert sum(isinstance(answer, StateConflict) for answer in answers) == 19


async def test_documents_are_listed_by_prefix_and_key(store: EtcdStore) -> None:
    for key in ("b/2", "a", "b/10", "c"):
        await store.put(key, key)
    await store.delete("b/10")
    await store.put("b/1", "b/1")
    assert [document.value for document in await store.list("b/")] == ["b/1", "b/2"]


async def test_a_document_that_is_too_large_is_refused(store: EtcdStore) -> None:
    with pytest.raises(DocumentTooLarge, match="'a'"):
        await store.put("a", "x" * (1 << 20))


async def test_a_watch_tells_what_is_there_and_every_change_over_a_member_that_dies(
    store: EtcdStore, whole: EtcdCluster
) -> None:
    await store.put("w/a", 1)
    async with aclosing(store.watch("w/")) as news:
        assert (await anext(news)).key == "w/a"
        await store.put("other", 0)
        await store.put("w/b", 2)
        assert shown(await asyncio.wait_for(anext(news), PATIENCE_S)) == ("w/b", 2)
        next(member for member in whole.members if member.address == store._link.member.address).kill()
        await until_done(lambda: store.put("w/c", 3))
        await until_done(lambda: store.delete("w/a"))
        heard = [shown(await asyncio.wait_for(anext(news), PATIENCE_S)) for _ in range(2)]
        assert sorted(heard) == [("w/a", None), ("w/c", 3)]


def shown(change: Change) -> tuple[str, object]:
    return change.key, None if change.document is None else change.document.value


async def until_done(act: Callable[[], Awaitable[object]]) -> None:
    """Asked again as long as etcd does not answer."""
    ends_s = time.monotonic() + PATIENCE_S
    while not await done(act):
        assert time.monotonic() < ends_s, "not in time"
        await asyncio.sleep(0.05)


async def done(act: Callable[[], Awaitable[object]]) -> bool:
    try:
        await act()
    except StateUnavailable:
        return False
    return True


async def test_an_etcd_that_is_gone_is_unavailable_and_answers_again_when_it_is_back(
    store: EtcdStore, whole: EtcdCluster
) -> None:
    await store.put("a", 1)
    whole.kill()
    began_s = time.monotonic()
    with pytest.raises(StateUnavailable, match="does not answer"):
        await store.get("a")
    with pytest.raises(StateUnavailable, match="does not answer"):
        await store.put("a", 2)
    assert time.monotonic() - began_s < 6.0
    whole.start()
    await until_done(lambda: store.get("a"))


# Who leads


@asynccontextmanager
async def standing(etcd: EtcdCluster, prefix: str, address: str) -> AsyncIterator[EtcdElection]:
    link = EtcdLink(etcd.endpoints)
    election = EtcdElection(link=link, prefix=prefix, address=address, lease_s=LEASE_S)
    task = asyncio.ensure_future(election.run())
    try:
        yield election
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await link.close()


def acts(election: EtcdElection) -> bool:
    return election.leadership is not None and election.leadership.may_act(time.monotonic())


async def test_one_leads_and_all_know_where(whole: EtcdCluster) -> None:
    async with standing(whole, "one/", "a:1") as a, standing(whole, "one/", "b:1") as b:
        await until(lambda: (acts(a) or acts(b)) and a.leader == b.leader is not None)
        assert not (acts(a) and acts(b))
        assert a.leader is not None
        assert a.leader.address == ("a:1" if acts(a) else "b:1")
        await until_done(lambda: names(a, {a.name, b.name}))


async def names(election: EtcdElection, wanted: set[str]) -> None:
    if await election.names() != wanted:
        raise StateUnavailable("not yet")


async def test_the_next_leader_comes_at_once_where_the_last_one_resigns_and_its_epoch_is_higher(
    whole: EtcdCluster,
) -> None:
    async with standing(whole, "resign/", "b:1") as b:
        await until(lambda: acts(b))
        async with standing(whole, "resign/", "a:1") as a:
            await until(lambda: a.leader is not None)
            assert b.leadership is not None
            first = b.leadership.epoch
            assert await b.leadership.rise_above(first + 10) == first + 11
        async with standing(whole, "resign/", "c:1") as c:
            await until(lambda: c.leader is not None)
            assert not acts(c)
    async with standing(whole, "resign/", "d:1") as d:
        began_s = time.monotonic()
        await until(lambda: acts(d))
        assert time.monotonic() - began_s < LEASE_S
        assert d.leadership is not None
        assert d.leadership.epoch > first + 11


async def test_a_leader_whose_etcd_is_gone_stops_before_its_lease_can_run_out_and_goes_on_after(
    whole: EtcdCluster,
) -> None:
    async with standing(whole, "gone/", "a:1") as a:
        await until(lambda: acts(a))
        for member in whole.members:
            member.signal(signal.SIGSTOP)
        stopped_s = time.monotonic()
        try:
            await until(lambda: not acts(a))
            assert time.monotonic() - stopped_s < LEASE_S
            assert a.leadership is not None
            with pytest.raises(NotLeading):
                await a.leadership.rise_above(10**9)
        finally:
            for member in whole.members:
                member.signal(signal.SIGCONT)
        await until(lambda: acts(a))


async def test_a_leader_outlives_the_leader_of_etcd(whole: EtcdCluster) -> None:
    async with standing(whole, "outlive/", "a:1") as a, standing(whole, "outlive/", "b:1") as b:
        await until(lambda: acts(a) or acts(b))
        whole.leader().kill()
        await until(lambda: acts(a) or acts(b))
        whole.start()
        await until(lambda: a.leader is not None and a.leader == b.leader and (acts(a) or acts(b)))
        assert not (acts(a) and acts(b))


@pytest.mark.slow
async def test_never_two_act_whatever_stops(whole: EtcdCluster) -> None:
    """Watched every 5 ms while members of etcd are stopped and killed in turn."""
    seen: list[tuple[bool, bool]] = []

    async def look() -> None:
        while True:
            seen.append((acts(a), acts(b)))
            await asyncio.sleep(0.005)

    async with standing(whole, "both/", "a:1") as a, standing(whole, "both/", "b:1") as b:
        await until(lambda: acts(a) or acts(b))
        looking = asyncio.ensure_future(look())
        for member in whole.members[:2]:
            member.signal(signal.SIGSTOP)
            await asyncio.sleep(LEASE_S + 0.5)
            member.signal(signal.SIGCONT)
            member.kill()
            whole.start()
        await until(lambda: acts(a) or acts(b))
        looking.cancel()
    assert (True, True) not in seen
    assert {(True, False), (False, True)} & set(seen)


# Stands for election, and says whether it may act: when that changes, and the moment that it goes on after a stop.
CANDIDATE = """
import asyncio, sys, time
from serverless_triton.scheduler.state.etcd_election import EtcdElection
from serverless_triton.scheduler.state.etcd_link import EtcdLink

async def main():
    election = EtcdElection(link=EtcdLink(sys.argv[2:]), prefix="stopped/", address="child:1", lease_s=int(sys.argv[1]))
    running = asyncio.ensure_future(election.run())
    said, last_s = None, time.monotonic()
    while not running.done():
        now_s = time.monotonic()
        acts = election.leadership is not None and election.leadership.may_act(now_s)
        if now_s - last_s > 1.0 or acts != said:
            print("went on" if now_s - last_s > 1.0 else "changed", acts, flush=True)
        said, last_s = acts, now_s
        await asyncio.sleep(0.005)

asyncio.run(main())
"""


async def test_a_scheduler_that_was_stopped_past_its_lease_acts_no_more_from_the_moment_it_goes_on(
    whole: EtcdCluster,
) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CANDIDATE, str(LEASE_S), *whole.endpoints, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        assert await asyncio.wait_for(child.stdout.readline(), PATIENCE_S) == b"changed False\n"
        assert await asyncio.wait_for(child.stdout.readline(), PATIENCE_S) == b"changed True\n"
        async with standing(whole, "stopped/", "b:1") as b:
            child.send_signal(signal.SIGSTOP)
            await until(lambda: acts(b))
            child.send_signal(signal.SIGCONT)
            assert await asyncio.wait_for(child.stdout.readline(), PATIENCE_S) == b"went on False\n"
            await asyncio.sleep(0.2)
            assert acts(b)
    finally:
        child.kill()
        await child.wait()
