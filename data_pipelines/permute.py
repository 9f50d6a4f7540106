"""Stateless shuffling: the k-th element of a keyed permutation, without storing the permutation."""

import numpy as np
from jaxtyping import Int

_MASK = (1 << 64) - 1
_ROUNDS = 4


def mix(*values: int) -> int:
    """A 64-bit hash of whole numbers, the same on every machine (splitmix64 steps)."""
    state = 0
    for value in values:
        state = (state ^ (value & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def permuted(index: int, size: int, key: int) -> int:
    """Element `index` of a permutation of range(size) chosen by `key`; O(1) time and memory.

    A Feistel network permutes the next power of four; what falls outside `size` is sent through
    again (cycle walking), on average less than three times more.
    """
    if not 0 <= index < size:
        raise IndexError(f"index {index} outside a permutation of {size}")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    while True:
        index = _feistel(index, half, key)
        if index < size:
            return index


def permuted_many(index: Int[np.ndarray, "n"], size: int, key: int) -> Int[np.ndarray, "n"]:
    """`permuted` of many indices at once; about a microsecond each.

    Raises:
      IndexError: an index outside range(size).
    """
    if len(index) and (index.min() < 0 or index.max() >= size):
        raise IndexError(f"indices outside a permutation of {size}")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    result = index.astype(np.uint64)
    pending = np.arange(len(result))
    while len(pending):
        result[pending] = _feistel_many(result[pending], half, key)
        pending = pending[result[pending] >= size]
    return result.astype(np.int64)


def _feistel_many(value: np.ndarray, half: int, key: int) -> np.ndarray:
    mask, width = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = value >> width, value & mask
    for turn in range(_ROUNDS):
        left, right = right, left ^ (_mix_last(mix(key, turn), right) & mask)
    return left << width | right


def _mix_last(state: int, values: np.ndarray) -> np.ndarray:
    """What `mix` gives for each last value after the values that led to `state`."""
    u = np.uint64
    mixed = (u(state) ^ values) + u(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> u(30))) * u(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> u(27))) * u(0x94D049BB133111EB)
    return mixed ^ (mixed >> u(31))


def _feistel(value: int, half: int, key: int) -> int:
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for turn in range(_ROUNDS):
        left, right = right, left ^ (mix(key, turn, right) & mask)
    return left << half | right
