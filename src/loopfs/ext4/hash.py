"""The hashes of names in a directory's index (fs/ext4/hash.c; half MD4 is from RFC 1320)."""

from __future__ import annotations

LEGACY, HALF_MD4, TEA = 0, 1, 2
Seed = tuple[int, int, int, int]
_INITIAL: Seed = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)  # RFC 1320, 3.3
_EOF = 0x7FFFFFFF  # stands for the end of a directory
_M = 0xFFFFFFFF
_K2, _K3 = 0x5A827999, 0x6ED9EBA1  # square roots of 2 and 3
_ROUND1 = tuple(zip(range(8), (3, 7, 11, 19) * 2, strict=True))
_ROUND2 = tuple(zip((1, 3, 5, 7, 0, 2, 4, 6), (3, 5, 9, 13) * 2, strict=True))
_ROUND3 = tuple(zip((3, 7, 2, 6, 1, 5, 0, 4), (3, 9, 11, 15) * 2, strict=True))
_DELTA = 0x9E3779B9  # of TEA


def _half_md4(state: Seed, words: list[int]) -> Seed:
    a, b, c, d = state
    for index, turn in _ROUND1:
        a = a + (d ^ (b & (c ^ d))) + words[index] & _M
        a, b, c, d = d, (a << turn | a >> 32 - turn) & _M, b, c
    for index, turn in _ROUND2:
        a = a + (b & c) + ((b ^ c) & d) + words[index] + _K2 & _M
        a, b, c, d = d, (a << turn | a >> 32 - turn) & _M, b, c
    for index, turn in _ROUND3:
        a = a + (b ^ c ^ d) + words[index] + _K3 & _M
        a, b, c, d = d, (a << turn | a >> 32 - turn) & _M, b, c
    return (state[0] + a & _M, state[1] + b & _M, state[2] + c & _M, state[3] + d & _M)


def _tea(state: Seed, words: list[int]) -> Seed:
    x, y, total = state[0], state[1], 0
    a, b, c, d = words
    for _ in range(16):
        total = total + _DELTA & _M
        x = x + (((y << 4) + a) ^ (y + total) ^ ((y >> 5) + b)) & _M
        y = y + (((x << 4) + c) ^ (x + total) ^ ((x >> 5) + d)) & _M
    return (state[0] + x & _M, state[1] + y & _M, state[2], state[3])


def _words(name: bytes, count: int, unsigned: bool) -> list[int]:
    """The next ``count`` words of 32 bits of a name, filled up with its length."""
    pad = len(name) & 0xFF
    pad |= pad << 8
    pad |= pad << 16
    words = []
    for begin in range(0, min(len(name), count * 4), 4):
        value = pad
        for char in name[begin : begin + 4]:
            value = (value << 8) + (char if unsigned or char < 128 else char - 256) & _M
        words.append(value)
    if len(name) % 4 == 0 or len(name) >= count * 4:
        return words + [pad] * (count - len(words))
    return words + [pad] * (count - len(words))


def _legacy(name: bytes, unsigned: bool) -> int:
    value, before = 0x12A3FE2D, 0x37ABE8F9
    for char in name:
        signed = char if unsigned or char < 128 else char - 256
        now = before + (value ^ (signed * 7152373 & _M)) & _M
        if now & 0x80000000:
            now = now - 0x7FFFFFFF & _M
        before, value = value, now
    return value << 1 & _M


def dirhash(name: bytes, version: int, seed: Seed | None, unsigned: bool) -> int:
    """The major hash of a name; its lowest bit is 0.

    Args:
        version: LEGACY, HALF_MD4 or TEA.
        seed: s_hash_seed; None: all zeros.
        unsigned: characters from 128 on are positive.
    """
    state = seed or _INITIAL
    if version == LEGACY:
        value = _legacy(name, unsigned)
    elif version == HALF_MD4:
        rest = name
        while rest:
            state = _half_md4(state, _words(rest, 8, unsigned))
            rest = rest[32:]
        value = state[1]
    else:
        rest = name
        while rest:
            state = _tea(state, _words(rest, 4, unsigned))
            rest = rest[16:]
        value = state[0]
    value &= ~1
    return (_EOF - 1) << 1 if value == _EOF << 1 else value
