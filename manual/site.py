"""A hook of MkDocs: pages of the site that are files outside of docs/."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CHECKOUT = Path(__file__).resolve().parents[1]
PAGES: Mapping[str, str] = {  # in the checkout, and on the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "bench/README.md": "benchmark.md",
}
_LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:)([^)#]+)((?:#[^)]*)?)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        content = linked((_CHECKOUT / source).read_text(encoding="utf-8"), source)
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links of a page in docs/ to where these pages are."""
    path = page.file.src_uri
    return markdown if path in PAGES.values() else linked(markdown, f"docs/{path}")


def linked(markdown: str, source: str) -> str:
    """A page with its links to files of the checkout as links of the site, if they are on it.

    Args:
        source: its path in the checkout.
    """

    def replaced(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        path = (_CHECKOUT / source).parent.joinpath(target).resolve(strict=True)
        inside = path.relative_to(_CHECKOUT).as_posix()
        if inside in PAGES:
            return f"[{text}]({PAGES[inside]}{anchor})"
        place, _, name = inside.partition("/")
        return f"[{text}]({name}{anchor})" if place == "docs" else text

    return _LINK.sub(replaced, markdown)
