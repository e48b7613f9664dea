"""Which tensors somebody wants: their names, or a predicate over names. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass

from .errors import TensorNotFound

Keys = Iterable[str] | Callable[[str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """`names` are those that must be there; `accepts` says which are wanted of those that are."""

    accepts: Callable[[str], bool]
    names: frozenset[str] = frozenset()

    def check(self, present: Set[str], path: str) -> None:
        """Raises TensorNotFound where a name that must be there is not."""
        check_present(self.names, present, path)


def wanted(keys: Keys | None) -> Wanted:
    """None stands for every tensor. Raises TypeError for a single string."""
    if keys is None:
        return Wanted(accepts=lambda _name: True)
    if isinstance(keys, str):
        raise TypeError(f"keys is one string; give an iterable of names, as in keys=[{keys!r}], or a predicate")
    if callable(keys):
        return Wanted(accepts=keys)
    names = frozenset(keys)
    return Wanted(accepts=names.__contains__, names=names)


def check_present(names: Iterable[str], present: Set[str], path: str) -> None:
    """Raises TensorNotFound where a name is not among those that are present."""
    missing = sorted(set(names) - present)
    if missing:
        raise TensorNotFound(f"{path} holds no tensor {missing[0]!r} ({len(missing)} of the names are missing)")
