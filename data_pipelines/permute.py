"""Stateless shuffling: the k-th element of a keyed permutation, without storing the permutation."""

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


def _feistel(value: int, half: int, key: int) -> int:
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for turn in range(_ROUNDS):
        left, right = right, left ^ (mix(key, turn, right) & mask)
    return left << half | right
