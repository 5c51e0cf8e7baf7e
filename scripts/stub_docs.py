#!/usr/bin/env python3
"""Writes the docstrings of the compiled half of the Python package into its stub, so that they are written once, in Rust.

    PYTHONPATH=python python scripts/stub_docs.py           rewrites python/voxpatch/_voxpatch.pyi
    PYTHONPATH=python python scripts/stub_docs.py --check   fails where it would change something
"""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from typing import Any

from voxpatch import _voxpatch

STUB = Path(__file__).parents[1] / "python/voxpatch/_voxpatch.pyi"


def docstring(value: Any, depth: int) -> list[str]:
    """Returns the lines of a docstring in a stub, or of an empty body."""
    text = inspect.cleandoc(value.__doc__ or "")
    pad = " " * depth
    if not text:
        return [pad + "..."]
    lines = [pad + line if line else "" for line in text.splitlines()]
    quotes, raw = '"""', "r" if "\\" in text else ""
    lines[0] = f"{pad}{raw}{quotes}{lines[0].strip()}"
    if len(lines) == 1:
        return [lines[0] + quotes]
    return [*lines, pad + quotes]


def edits(body: list[ast.stmt], owner: Any) -> list[tuple[ast.AST, Any]]:
    """Returns the classes and functions of a stub that exist, with what they are, the last of overloads only."""
    found: list[tuple[ast.AST, Any]] = []
    for place, node in enumerate(body):
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            continue
        value = inspect.getattr_static(owner, node.name, None)
        value = getattr(value, "__func__", value)
        following = body[place + 1] if place + 1 < len(body) else None
        overloaded = isinstance(following, ast.FunctionDef) and following.name == node.name
        # What a type inherits from `object` says nothing.
        if value is None or overloaded or getattr(object, node.name, None) is value or node.name == "__new__":
            continue
        if isinstance(node, ast.ClassDef):
            found += edits(node.body, value)
            found.append((node, value))
        elif not node.name.startswith("__") or node.name == "__array__":
            found.append((node, value))
    return found


def written(source: str) -> str:
    """Returns the stub with all docstrings."""
    lines = source.splitlines()
    found = edits(ast.parse(source).body, _voxpatch)
    for node, value in sorted(found, key=lambda one: -one[0].body[0].lineno):  # type: ignore[attr-defined]
        first = node.body[0]  # type: ignore[attr-defined]
        new = docstring(value, node.col_offset + 4)  # type: ignore[attr-defined]
        has_doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        own_line = not lines[first.lineno - 1][: first.col_offset].strip()
        if not has_doc:
            start = min([first.lineno, *(one.lineno for one in getattr(first, "decorator_list", []))])
            lines[start - 1 : start - 1] = new
        elif own_line:
            lines[first.lineno - 1 : first.end_lineno] = new
        elif new[0].strip() != "...":
            before = lines[first.lineno - 1][: first.col_offset].rstrip()
            lines[first.lineno - 1 : first.end_lineno] = [before, *new]
    return "\n".join(lines) + "\n"


def main() -> int:
    source = STUB.read_text()
    new = written(source)
    if "--check" in sys.argv[1:]:
        if new != source:
            print(f"{STUB}: the docstrings are not those of the build: run scripts/stub_docs.py", file=sys.stderr)
        return int(new != source)
    STUB.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
