"""Names of directory records without Rock Ridge or Joliet, and how names are compared."""

from __future__ import annotations

_UPPER = bytes(range(0x41, 0x5B))
# Small letters; a version is part of the name after a dot, and so is what Acorn's images have "/"
# for.
_NORMAL = bytes.maketrans(_UPPER + b";/", _UPPER.lower() + b"..")
# tolower() of the kernel, whose characters are ISO 8859-1's, whatever the names are in.
_LATIN = bytes((*range(0xC0, 0xD7), *range(0xD8, 0xDF)))
_LOWER = bytes.maketrans(_UPPER + _LATIN, _UPPER.lower() + bytes(c + 0x20 for c in _LATIN))

_ACORN = (
    32  # bytes of the Acorn extension: "ARCHIMEDES", load address, execution address, attributes
)
_ACORN_ID = b"ARCHIMEDES"
_ACORN_PLING = 1  # of the attributes: the first character is "!"


def normal(raw: bytes) -> bytes:
    """``map=normal``: lower case, without the version ";1" and the dot before it."""
    end = len(raw)
    if raw.endswith(b".;1"):
        end -= 3
    elif raw.endswith(b";1"):
        end -= 2
    nul = raw.find(b"\0", 0, end)
    return raw[: end if nul < 0 else nul].translate(_NORMAL)


def acorn(raw: bytes, system_use: bytes, *, is_dir: bool) -> bytes:
    """``map=acorn``: as normal, with the file type of an Acorn image at the end.

    Args:
        system_use: what the record has after the name.
    """
    name = normal(raw)
    if not name or len(system_use) != _ACORN or not system_use.startswith(_ACORN_ID):
        return name
    if name[:1] == b"_" and system_use[19] & _ACORN_PLING:
        name = b"!" + name[1:]
    if not is_dir and system_use[13] == 0xFF and system_use[12] & 0xF0 == 0xF0:
        name += b",%03x" % ((system_use[12] & 0x0F) << 8 | system_use[11])
    return name


def folded(name: bytes, *, joliet: bool, relaxed: bool) -> bytes:
    """What names that are the same have in common: with Joliet regardless of dots at the end, with
    ``check=relaxed`` of case."""
    if joliet:
        name = name.rstrip(b".")
    return name.translate(_LOWER) if relaxed else name
