import pytest

from serverless_triton.loader.cache import Image, ImageCache, ImageState, is_evictable
from serverless_triton.loader.checkpoint import Checkpoint, CheckpointFile
from serverless_triton.loader.errors import StoreFull
from serverless_triton.loader.layout import ALIGNMENT_BYTES

PAGES = ALIGNMENT_BYTES
MEGABYTES = 1 << 20


def checkpoint(path: str, pages: int = 1, mtime_ns: int = 0) -> Checkpoint:
    file = CheckpointFile(name="m", real_path=f"{path}/m", bytes=pages * PAGES, mtime_ns=mtime_ns, inode=1)
    return Checkpoint(path=path, device="disk:1", files=(file,))


def large(path: str, megabytes: int) -> Checkpoint:
    return checkpoint(path, megabytes * MEGABYTES // PAGES)


def ready(cache: ImageCache, wanted: Checkpoint) -> Image:
    image = cache.admit(wanted)
    assert cache.place(image) == ()
    cache.ready(image, verified=False)
    return image


def test_a_version_is_found_by_its_files() -> None:
    cache = ImageCache(10 * PAGES)
    image = cache.admit(checkpoint("/a"))

    assert cache.find(checkpoint("/a").files) is image
    assert cache.find(checkpoint("/a", mtime_ns=1).files) is None


def test_an_image_has_its_place_from_the_start_of_its_load_until_it_is_forgotten() -> None:
    cache = ImageCache(10 * PAGES)
    image = cache.admit(checkpoint("/a", 3))
    assert (image.state, cache.map.used_bytes) == (ImageState.EMPTY, 0)
    cache.place(image)
    assert (image.state, cache.map.used_bytes) == (ImageState.LOADING, 3 * PAGES)
    cache.ready(image, verified=False)
    cache.forget(image)

    assert cache.map.used_bytes == 0


def test_a_load_that_came_to_nothing_gives_its_place_back() -> None:
    cache = ImageCache(10 * PAGES)
    image = cache.admit(checkpoint("/a", 3))
    cache.place(image)
    cache.empty(image)

    assert (image.state, image.files, cache.map.used_bytes) == (ImageState.EMPTY, (), 0)


def test_an_image_larger_than_the_arena_is_refused() -> None:
    with pytest.raises(StoreFull, match="raise its DRAM budget"):
        ImageCache(PAGES).admit(checkpoint("/a", 2))


def test_the_least_recently_used_goes_first() -> None:
    cache = ImageCache(3 * PAGES)
    first, second, third = (ready(cache, checkpoint(path)) for path in ("/a", "/b", "/c"))
    cache.lease(first, client=1)
    cache.release_all(client=1)

    assert cache.victims_for(cache.admit(checkpoint("/d"))) == [second]
    assert cache.victims_for(cache.admit(checkpoint("/e", 2))) == [second, third]


def test_leased_images_never_go() -> None:
    cache = ImageCache(2 * PAGES)
    first, second = (ready(cache, checkpoint(path)) for path in ("/a", "/b"))
    cache.lease(first, client=1)

    assert cache.victims_for(cache.admit(checkpoint("/c"))) == [second]
    with pytest.raises(StoreFull, match=f"{PAGES} are leased"):
        cache.victims_for(cache.admit(checkpoint("/d", 2)))


def test_an_image_that_still_loads_is_no_victim() -> None:
    cache = ImageCache(PAGES)
    cache.place(cache.admit(checkpoint("/a")))

    with pytest.raises(StoreFull):
        cache.victims_for(cache.admit(checkpoint("/b")))


def test_nobody_goes_where_moving_them_together_makes_room() -> None:
    cache = ImageCache(400 * MEGABYTES)
    images = [ready(cache, large(f"/{i}", 80)) for i in range(5)]
    for image in (images[0], images[2]):
        cache.forget(image)
    wanted = cache.admit(large("/wide", 160))

    assert cache.victims_for(wanted) == []
    moves = cache.place(wanted)

    assert [move.source // MEGABYTES for move in moves] == [80]
    assert not wanted.is_scattered
    assert (images[1].moving, images[3].moving) == (True, False)
    assert images[1].files[0][0].offset == moves[0].target
    assert cache.end_moves() == [images[1]]


def test_what_may_not_move_makes_an_image_scattered() -> None:
    cache = ImageCache(400 * MEGABYTES)
    images = [ready(cache, large(f"/{i}", 80)) for i in range(5)]
    cache.lease(images[1], client=1)
    cache.lease(images[3], client=1)
    for image in (images[0], images[2]):
        cache.forget(image)
    wanted = cache.admit(large("/wide", 150))

    assert cache.victims_for(wanted) == []
    assert cache.place(wanted) == ()
    assert wanted.is_scattered
    assert [piece.length // MEGABYTES for piece in wanted.pieces] == [80, 70]


def test_images_that_are_going_already_count_as_gone() -> None:
    cache = ImageCache(PAGES)
    image = ready(cache, checkpoint("/a"))
    image.moving = True
    cache.begin_eviction(image)

    assert cache.victims_for(cache.admit(checkpoint("/b"))) == []
    assert cache.find(image.key) is None


def test_leases_are_counted_by_client() -> None:
    cache = ImageCache(PAGES)
    image = ready(cache, checkpoint("/a"))
    for client in (1, 1, 2):
        cache.lease(image, client)

    assert cache.release(image.id, client=1)
    cache.release_all(client=2)
    assert not is_evictable(image)
    assert cache.leased_bytes == PAGES
    assert cache.release(image.id, client=1)
    assert is_evictable(image)


def test_a_lease_that_a_client_does_not_hold_cannot_be_released() -> None:
    cache = ImageCache(PAGES)
    image = ready(cache, checkpoint("/a"))
    cache.lease(image, client=1)

    assert not cache.release(image.id, client=2)
    assert not cache.release(999, client=1)
    assert image.leases.total() == 1


def test_a_client_passes_on_no_more_than_it_has() -> None:
    cache = ImageCache(PAGES)
    image = ready(cache, checkpoint("/a"))
    for _ in range(3):
        cache.lease(image, client=1)

    assert cache.pass_on(image.id, giver=1, taker=2, at_most=2) == 2
    assert cache.pass_on(image.id, giver=1, taker=2, at_most=2) == 1
    assert cache.pass_on(image.id, giver=1, taker=2, at_most=-5) == 0
    assert cache.pass_on(999, giver=1, taker=2, at_most=1) == 0
    assert image.leases == {2: 3}


def test_what_a_predecessor_left_is_where_it_was() -> None:
    before = ImageCache(10 * PAGES)
    kept, _ = ready(before, checkpoint("/a", 3)), before.place(before.admit(checkpoint("/loading")))
    before.lease(kept, client=1)
    after = ImageCache(10 * PAGES)
    for record in before.records():
        after.adopt(record)
    after.adopt_next_id(before.next_id)
    after.adopt_lease(kept.id, client=7, leases=1)

    image = after.find(kept.key)
    assert image is not None
    assert (image.id, image.files, image.state, image.leases) == (kept.id, kept.files, ImageState.READY, {7: 1})
    assert after.map.used_bytes == 3 * PAGES
    assert after.admit(checkpoint("/b")).id == before.next_id
    with pytest.raises(ValueError, match="is not free"):
        after.adopt(before.records()[0])
