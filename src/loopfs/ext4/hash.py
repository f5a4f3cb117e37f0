"""The hash functions of a directory's index (fs/ext4/hash.c; half MD4 is from RFC 1320)."""

from __future__ import annotations

import struct

LEGACY, HALF_MD4, TEA = 0, 1, 2
Seed = tuple[int, int, int, int]
_INITIAL: Seed = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)  # RFC 1320, 3.3
_EOF = 0x7FFFFFFF  # reserved: marks the end of a directory
_M = 0xFFFFFFFF
_K2, _K3 = 0x5A827999, 0x6ED9EBA1  # square roots of 2 and 3
_NEGATIVE = bytes(char >> 7 for char in range(256))
_FORMATS = {4: struct.Struct(">4I"), 8: struct.Struct(">8I")}
_DELTA = 0x9E3779B9  # the constant of TEA


def _half_md4(state: Seed, words: tuple[int, ...]) -> Seed:
    a, b, c, d = state
    w0, w1, w2, w3, w4, w5, w6, w7 = words
    for k0, k1, k2, k3 in ((w0, w1, w2, w3), (w4, w5, w6, w7)):
        a = a + (d ^ (b & (c ^ d))) + k0 & _M
        a = (a << 3 | a >> 29) & _M
        d = d + (c ^ (a & (b ^ c))) + k1 & _M
        d = (d << 7 | d >> 25) & _M
        c = c + (b ^ (d & (a ^ b))) + k2 & _M
        c = (c << 11 | c >> 21) & _M
        b = b + (a ^ (c & (d ^ a))) + k3 & _M
        b = (b << 19 | b >> 13) & _M
    for k0, k1, k2, k3 in ((w1, w3, w5, w7), (w0, w2, w4, w6)):
        a = a + (b & c) + ((b ^ c) & d) + k0 + _K2 & _M
        a = (a << 3 | a >> 29) & _M
        d = d + (a & b) + ((a ^ b) & c) + k1 + _K2 & _M
        d = (d << 5 | d >> 27) & _M
        c = c + (d & a) + ((d ^ a) & b) + k2 + _K2 & _M
        c = (c << 9 | c >> 23) & _M
        b = b + (c & d) + ((c ^ d) & a) + k3 + _K2 & _M
        b = (b << 13 | b >> 19) & _M
    for k0, k1, k2, k3 in ((w3, w7, w2, w6), (w1, w5, w0, w4)):
        a = a + (b ^ c ^ d) + k0 + _K3 & _M
        a = (a << 3 | a >> 29) & _M
        d = d + (a ^ b ^ c) + k1 + _K3 & _M
        d = (d << 9 | d >> 23) & _M
        c = c + (d ^ a ^ b) + k2 + _K3 & _M
        c = (c << 11 | c >> 21) & _M
        b = b + (c ^ d ^ a) + k3 + _K3 & _M
        b = (b << 15 | b >> 17) & _M
    return (state[0] + a & _M, state[1] + b & _M, state[2] + c & _M, state[3] + d & _M)


def _tea(state: Seed, words: tuple[int, ...]) -> Seed:
    x, y, total = state[0], state[1], 0
    a, b, c, d = words
    for _ in range(16):
        total = total + _DELTA & _M
        x = x + (((y << 4) + a) ^ (y + total) ^ ((y >> 5) + b)) & _M
        y = y + (((x << 4) + c) ^ (x + total) ^ ((x >> 5) + d)) & _M
    return (state[0] + x & _M, state[1] + y & _M, state[2], state[3])


def _words(name: bytes, count: int, unsigned: bool) -> tuple[int, ...]:
    """Return the first ``count`` 32-bit words of a name, padded with its length."""
    words = _packed(name, count, len(name) & 0xFF)
    if unsigned or name.isascii():
        return words
    borrows = _packed(name.translate(_NEGATIVE), count, 0)
    return tuple(word - (borrow << 8) & _M for word, borrow in zip(words, borrows, strict=True))


def _packed(name: bytes, count: int, fill: int) -> tuple[int, ...]:
    pad, name = bytes((fill,)), name[: count * 4]
    if rest := len(name) % 4:
        name = name[:-rest] + pad * (4 - rest) + name[-rest:]
    return _FORMATS[count].unpack(name.ljust(count * 4, pad))


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
    """Return the major hash of a name; its lowest bit is 0.

    Args:
        version: LEGACY, HALF_MD4 or TEA.
        seed: s_hash_seed; None if that is all zeros.
        unsigned: characters from 128 on are taken as positive numbers.
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
