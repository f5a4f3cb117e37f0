"""Write the files: ``python3 -m manual [DIRECTORY]``, by default share/ of the checkout."""

from __future__ import annotations

import sys
from pathlib import Path

from manual.files import made


def main() -> None:
    """Write what has changed, and say so."""
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "share")
    for name, text in made().items():
        path = directory / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(path)


main()
