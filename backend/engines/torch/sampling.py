"""Draws the next token from logits.

The noise is a function of seed and position alone, so that a stream goes on identically wherever it is resumed. Philox
(Salmon et al., SC '11) counts positions, and Gumbel-max makes a draw of it: the argmax of logit + Gumbel noise is
distributed as the softmax, without a sum. NumPy's logarithm may round differently on another processor or in another
release, so both are part of the exactness contract.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from serverless_triton.backend.engines.sampling_parameters import SamplingParameters

_Floats = npt.NDArray[np.float64]
_Words = npt.NDArray[np.uint64]
_NEAR = 8.0  # noise exceeds it once in 3000 draws, so the best of those this near the top is mostly the best of all
_NUCLEI = (256, 4096)  # how many of the best are tried before all are sorted


def draw(logits: torch.Tensor, parameters: SamplingParameters, position: int) -> int:
    """The token at generated position `position`, from float32 `logits` [vocabulary], the largest of them finite."""
    if parameters.greedy:
        return int(logits.argmax())
    assert parameters.seed is not None
    scores = logits.cpu().numpy().astype(np.float64) / parameters.temperature
    scores[scores < _floor(scores, parameters)] = -np.inf
    return _best(scores, _words(parameters.seed, position, len(scores)))


def gumbel_noise(seed: int, position: int, count: int) -> _Floats:
    """Noise for each token of the vocabulary."""
    return _noise(_words(seed, position, count))


def _words(seed: int, position: int, count: int) -> _Words:
    """Raw Philox words: NumPy promises that these never change."""
    return np.random.Philox(key=seed, counter=position << 64).random_raw(count)


def _noise(words: _Words) -> _Floats:
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: _Floats = -np.log(-np.log(uniform))
    return noise


def _best(scores: _Floats, words: _Words) -> int:
    """Where score + noise is largest, with the noise of only those computed that could be it."""
    nearest = scores.max() - _NEAR
    near = np.flatnonzero(scores >= nearest)
    winner = float((scores[near] + _noise(words[near])).max())
    # Noise grows with its word: one that is to lift the others above the winner needs a word above this one.
    least = math.exp(-math.exp(-(winner - nearest - 1e-6)))
    able = np.flatnonzero((words >= np.uint64(int(least * (2.0**64 - 2.0**12)))) | (scores >= nearest))
    return int(able[(scores[able] + _noise(words[able])).argmax()])


def _floor(scores: _Floats, parameters: SamplingParameters) -> float:
    """The least score that top_k and top_p leave: that of the k best, and of those the fewest that reach top_p."""
    floor = -np.inf
    if 0 < parameters.top_k < len(scores):
        floor = np.partition(scores, -parameters.top_k)[-parameters.top_k]
    if parameters.top_p < 1.0:
        floor = max(floor, _nucleus_floor(scores[scores >= floor], parameters.top_p))
    return float(floor)


def _nucleus_floor(scores: _Floats, top_p: float) -> float:
    best = scores.max()
    wanted = top_p * np.exp(scores - best).sum()
    for count in (*(count for count in _NUCLEI if count < len(scores)), len(scores)):
        descending = np.sort(np.partition(scores, len(scores) - count)[len(scores) - count :])[::-1]
        probabilities = np.exp(descending - best)
        before = np.cumsum(probabilities) - probabilities
        if before[-1] >= wanted or count == len(scores):
            break
    return float(descending[before < wanted][-1])
