"""Draws the next token from logits.

The noise is a function of seed and position alone, so that a stream goes on identically wherever it is resumed. Philox
(Salmon et al., SC '11) counts positions, and Gumbel-max makes a draw of it: the argmax of logit + Gumbel noise is
distributed as the softmax, without a sum whose rounding could depend on the machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from serverless_triton.backend.engines.sampling_parameters import SamplingParameters

_Floats = npt.NDArray[np.float64]


def draw(logits: torch.Tensor, parameters: SamplingParameters, position: int) -> int:
    """The token at generated position `position`, from float32 `logits` [vocabulary], the largest of them finite."""
    if parameters.greedy:
        return int(logits.argmax())
    assert parameters.seed is not None
    scores = logits.cpu().numpy().astype(np.float64) / parameters.temperature
    scores[~_kept(scores, parameters)] = -np.inf
    return int((scores + gumbel_noise(parameters.seed, position, len(scores))).argmax())


def gumbel_noise(seed: int, position: int, count: int) -> _Floats:
    """Noise for each token of the vocabulary. Raw Philox words: NumPy promises that these never change."""
    words = np.random.Philox(key=seed, counter=position << 64).random_raw(count)
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: _Floats = -np.log(-np.log(uniform))
    return noise


def _kept(scores: _Floats, parameters: SamplingParameters) -> npt.NDArray[Any]:
    """Which tokens top_k and top_p leave: the k best, and of those the fewest whose probabilities reach top_p."""
    kept = np.ones(len(scores), dtype=bool)
    if 0 < parameters.top_k < len(scores):
        kept = scores >= np.partition(scores, -parameters.top_k)[-parameters.top_k]
    if parameters.top_p < 1.0:
        kept &= scores >= _nucleus_floor(scores[kept], parameters.top_p)
    return kept


def _nucleus_floor(scores: _Floats, top_p: float) -> float:
    descending = np.sort(scores)[::-1]
    probabilities = np.exp(descending - descending[0])
    before = np.cumsum(probabilities) - probabilities
    return float(descending[before < top_p * probabilities.sum()][-1])
