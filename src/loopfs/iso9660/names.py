"""Names of directory records without Rock Ridge or Joliet, and the comparison of names."""

from __future__ import annotations

_UPPER = bytes(range(0x41, 0x5B))
# Lower case. A ";" before a version becomes a dot, and so does "/", which stands for a dot in
# Acorn's images.
_NORMAL = bytes.maketrans(_UPPER + b";/", _UPPER.lower() + b"..")
# tolower() of the kernel, which is that of ISO 8859-1 whatever the character set is.
_LATIN = bytes((*range(0xC0, 0xD7), *range(0xD8, 0xDF)))
_LOWER = bytes.maketrans(_UPPER + _LATIN, _UPPER.lower() + bytes(c + 0x20 for c in _LATIN))

_ACORN = (
    32  # bytes of the Acorn extension: "ARCHIMEDES", load address, execution address, attributes
)
_ACORN_ID = b"ARCHIMEDES"
_ACORN_PLING = 1  # bit of the attributes: the first character is "!"


def normal(raw: bytes) -> bytes:
    """Convert a name as ``map=normal``: lower case, without ";1" and a dot before it."""
    end = len(raw)
    if raw.endswith(b".;1"):
        end -= 3
    elif raw.endswith(b";1"):
        end -= 2
    nul = raw.find(b"\0", 0, end)
    return raw[: end if nul < 0 else nul].translate(_NORMAL)


def acorn(raw: bytes, system_use: bytes, *, is_dir: bool) -> bytes:
    """Convert a name as ``map=acorn``: as normal, with the file type of an Acorn image appended.

    Args:
        system_use: the bytes of the record after the name.
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
    """Return the same for names that refer to the same file.

    With Joliet trailing dots are ignored, with ``check=relaxed`` case is.
    """
    if joliet:
        name = name.rstrip(b".")
    return name.translate(_LOWER) if relaxed else name
