"""Who is compared, as data. A row's name says the dtype first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`contender` is one of contenders.CONTENDERS. `recomputes`: it also recomputes what it decoded."""

    dtype: str
    contender: str
    recomputes: bool = False

    @property
    def name(self) -> str:
        return f"{self.dtype}.{self.contender}"

    @property
    def title(self) -> str:
        return TITLES[self.contender]

    @property
    def ours(self) -> bool:
        return self.contender in OUR_CONTENDERS


DTYPES = ("bfloat16", "float32")
TITLES = {
    "ours": "ours, fast",
    "ours_exact": "ours, exact",
    "generate": "transformers, generate()",
    "continuous_batching": "transformers, continuous batching",
}
OUR_CONTENDERS = ("ours", "ours_exact")
ROWS = tuple(
    Row(dtype=dtype, contender=contender, recomputes=dtype == DTYPES[0] and contender in OUR_CONTENDERS)
    for dtype in DTYPES
    for contender in TITLES
)
OURS, OURS_EXACT, GENERATE, CONTINUOUS_BATCHING = (f"bfloat16.{contender}" for contender in TITLES)
BATCHES = (1, 4, 8, 16)
