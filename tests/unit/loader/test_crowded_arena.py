"""Thousands of small images: the loop that serves everybody chooses victims with little work. Counted, not timed."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from math import log2
from random import Random

import pytest

from serverless_triton.loader import cache as cache_module
from serverless_triton.loader.arena_map import ArenaMap, extent_bytes
from serverless_triton.loader.cache import Image, ImageCache
from serverless_triton.loader.checkpoint import Checkpoint, CheckpointFile
from serverless_triton.loader.compaction import Compaction, compact
from serverless_triton.loader.errors import StoreFull
from serverless_triton.loader.layout import ALIGNMENT_BYTES, Piece

from .work_counter import instructions_of

MEGABYTES = 1 << 20
IMAGES = 2000
# Of each image in one plan, for each doubling of the images. A quadratic plan takes a hundred times more.
PLAN_INSTRUCTIONS = 300


def checkpoint(name: str, size_bytes: int) -> Checkpoint:
    file = CheckpointFile(name="m", real_path=f"/{name}/m", bytes=size_bytes, mtime_ns=0, inode=1)
    return Checkpoint(path=f"/{name}", device="disk:1", files=(file,))


def crowded(images: int, is_leased: Callable[[int], bool]) -> ImageCache:
    """A store full of images of 7 to 9 MB."""
    sizes = [Random(i).randrange(7 * MEGABYTES, 9 * MEGABYTES) for i in range(images)]
    cache = ImageCache(sum(map(extent_bytes, sizes)))
    for i, size_bytes in enumerate(sizes):
        image = cache.admit(checkpoint(f"lora{i}", size_bytes))
        cache.place(image)
        cache.ready(image, verified=False)
        if is_leased(i):
            cache.lease(image, client=1)
    return cache


def victims_or_none(cache: ImageCache, wanted: Checkpoint) -> list[Image] | None:
    try:
        return cache.victims_for(cache.admit(wanted))
    except StoreFull:
        return None


@pytest.mark.parametrize(
    ("is_leased", "megabytes"),
    [
        pytest.param(lambda i: i % 2 == 0, 100, id="every second one leased, no room to be had"),
        pytest.param(lambda i: i % 2 == 0, 8.9, id="every second one leased, room for some"),
        pytest.param(lambda i: i % 20 == 0, 100, id="every twentieth leased"),
        pytest.param(lambda i: False, 500, id="none leased"),
    ],
)
def test_victims_are_chosen_with_a_number_of_plans_that_is_logarithmic(
    monkeypatch: pytest.MonkeyPatch, is_leased: Callable[[int], bool], megabytes: float
) -> None:
    cache, plans = crowded(IMAGES, is_leased), Counter[str]()

    def counted(arena: ArenaMap, file_bytes: Sequence[int], movable: Collection[Piece]) -> Compaction | None:
        plans["made"] += 1
        return compact(arena, file_bytes, movable)

    monkeypatch.setattr(cache_module, "compact", counted)
    most_plans = 2 * log2(IMAGES)

    instructions_of(
        lambda: victims_or_none(cache, checkpoint("wanted", int(megabytes * MEGABYTES))),
        at_most=int(most_plans * PLAN_INSTRUCTIONS * IMAGES * log2(IMAGES)),
    )

    assert plans["made"] <= most_plans


@pytest.mark.parametrize("length_megabytes", [8, 9, 100, 1000])
@pytest.mark.parametrize("fixed_one_in", [2, 20, 10**9])
def test_a_plan_takes_little_more_than_a_look_at_each_piece(length_megabytes: int, fixed_one_in: int) -> None:
    random, taken, cursor = Random(1), [], 0
    for _ in range(IMAGES):
        cursor += random.randrange(1, 256) * ALIGNMENT_BYTES
        taken.append(Piece(offset=cursor, length=random.randrange(1700, 2300) * ALIGNMENT_BYTES))
        cursor = taken[-1].end
    arena = ArenaMap(cursor, taken)
    movable = {piece for at, piece in enumerate(taken) if at % fixed_one_in}

    instructions_of(
        lambda: compact(arena, [length_megabytes * MEGABYTES], movable),
        at_most=int(PLAN_INSTRUCTIONS * IMAGES * log2(IMAGES)),
    )


def test_the_fewest_of_the_least_recently_used_go() -> None:
    cache = crowded(200, lambda i: i % 2 == 0)
    images = [image for image in cache.images if not image.leases]

    victims = victims_or_none(cache, checkpoint("wanted", int(8.9 * MEGABYTES)))

    assert victims == images[: len(victims or [])]
    assert victims
    fewer = cache.map.without({piece for victim in victims[:-1] for piece in victim.pieces})
    movable = {piece for image in images[len(victims) - 1 :] for piece in image.pieces}
    assert fewer.scatter([int(8.9 * MEGABYTES)]) is None
    assert compact(fewer, [int(8.9 * MEGABYTES)], movable) is None
