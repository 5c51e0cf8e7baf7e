"""Adds the documents outside docs/ to the documentation site, with links that work there. A hook of MkDocs."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
#: Documents outside docs/, and their pages.
PAGES = {
    "README.md": "index.md",
    "python/README.md": "python.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
#: The start of a code block with rustdoc's attributes, which Markdown of Python does not take for one.
ATTRIBUTES = re.compile(r"^```(\w+),[\w,]+$", re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def relinked(text: str, source: str, page: str) -> str:
    """Return the text of document `source` with its relative links as they are from `page`."""

    def replaced(match: re.Match[str]) -> str:
        label, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        if re.match(r"[a-z]+:", target):
            return match.group(0)
        document = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if document in PAGES:
            place = PAGES[document]
        elif document.startswith("docs/"):
            place = document.removeprefix("docs/")
        else:
            # A file that the site does not have, such as an example.
            return label
        return f"[{label}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(replaced, text)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for source, page in PAGES.items():
        text = relinked((ROOT / source).read_text(), source, page)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Mend the links of the documents in docs/ to those outside, and the starts of code blocks."""
    uri = page.file.src_uri
    markdown = ATTRIBUTES.sub(r"```\1", markdown)
    return markdown if uri in PAGES.values() else relinked(markdown, f"docs/{uri}", uri)
