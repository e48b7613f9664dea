import pytest

from serverless_triton.loader.cache import Image, ImageCache, ImageState, is_evictable
from serverless_triton.loader.checkpoint import Checkpoint, CheckpointFile
from serverless_triton.loader.errors import StoreFull
from serverless_triton.loader.layout import ALIGNMENT_BYTES

PAGES = ALIGNMENT_BYTES


def checkpoint(path: str, pages: int = 1, mtime_ns: int = 0) -> Checkpoint:
    file = CheckpointFile(name="m", real_path=f"{path}/m", bytes=pages * PAGES, mtime_ns=mtime_ns, inode=1)
    return Checkpoint(path=path, files=(file,))


def ready(cache: ImageCache, path: str, pages: int = 1) -> Image:
    image = cache.admit(checkpoint(path, pages))
    cache.charge(image)
    cache.ready(image, verified=False)
    return image


def test_a_version_is_found_by_its_files() -> None:
    cache = ImageCache(10 * PAGES)
    image = cache.admit(checkpoint("/a"))

    assert cache.find(checkpoint("/a").files) is image
    assert cache.find(checkpoint("/a", mtime_ns=1).files) is None


def test_budget_is_taken_from_the_start_of_the_load_until_memory_is_back() -> None:
    cache = ImageCache(10 * PAGES)
    image = cache.admit(checkpoint("/a", 3))
    assert cache.used_bytes == 0
    cache.charge(image)
    assert cache.used_bytes == 3 * PAGES
    cache.ready(image, verified=False)
    cache.begin_eviction(image)
    assert cache.used_bytes == 3 * PAGES
    cache.forget(image)
    assert cache.used_bytes == 0


def test_an_image_larger_than_the_budget_is_refused() -> None:
    with pytest.raises(StoreFull, match="raise its DRAM budget"):
        ImageCache(PAGES).admit(checkpoint("/a", 2))


def test_the_least_recently_used_goes_first() -> None:
    cache = ImageCache(3 * PAGES)
    first, second, third = (ready(cache, path) for path in ("/a", "/b", "/c"))
    cache.lease(first, client=1)
    cache.release_all(client=1)

    assert cache.victims_for(cache.admit(checkpoint("/d"))) == [second]
    assert cache.victims_for(cache.admit(checkpoint("/e", 2))) == [second, third]


def test_leased_images_never_go() -> None:
    cache = ImageCache(2 * PAGES)
    first, second = (ready(cache, path) for path in ("/a", "/b"))
    cache.lease(first, client=1)

    assert cache.victims_for(cache.admit(checkpoint("/c"))) == [second]
    with pytest.raises(StoreFull, match=f"{PAGES} are leased"):
        cache.victims_for(cache.admit(checkpoint("/d", 2)))


def test_images_that_are_going_already_count_as_gone() -> None:
    cache = ImageCache(PAGES)
    image = ready(cache, "/a")
    cache.begin_eviction(image)

    assert cache.victims_for(cache.admit(checkpoint("/b"))) == []
    assert cache.find(image.key) is None


def test_leases_are_counted_by_client() -> None:
    cache = ImageCache(PAGES)
    image = ready(cache, "/a")
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
    image = ready(cache, "/a")
    cache.lease(image, client=1)

    assert not cache.release(image.id, client=2)
    assert not cache.release(999, client=1)
    assert image.leases.total() == 1


def test_an_image_that_still_loads_is_no_victim() -> None:
    cache = ImageCache(PAGES)
    image = cache.admit(checkpoint("/a"))
    cache.charge(image)

    assert image.state is ImageState.LOADING
    with pytest.raises(StoreFull):
        cache.victims_for(cache.admit(checkpoint("/b")))
