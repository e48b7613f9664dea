"""Searches that ask few questions, for where each one is dear. Pure."""

from __future__ import annotations

from collections.abc import Callable


def first_that(begin: int, end: int, is_enough: Callable[[int], bool]) -> int | None:
    """The least of begin..end, both included, that is enough, where all above it are too; None where `end` is not.

    Asks O(log n) questions: steps that double from `begin` on, then halves of the last one. Where some above are not
    enough, the answer is enough still, and the one below it is not.
    """
    too_few, step = begin - 1, 1
    while too_few < end:
        tried = min(too_few + step, end)
        if is_enough(tried):
            return _halved(too_few, tried, is_enough)
        too_few, step = tried, 2 * step
    return None


def _halved(too_few: int, enough: int, is_enough: Callable[[int], bool]) -> int:
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if is_enough(middle):
            enough = middle
        else:
            too_few = middle
    return enough
