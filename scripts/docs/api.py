"""docs/api/*.md: what each room exports, read from the source without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from scripts.docs.markdown import NOTE, ROOT

PACKAGE = ROOT / "src" / "terrazzo"
_Definition = ast.FunctionDef | ast.ClassDef


def rooms() -> list[str]:
    """Packages and public files of terrazzo, the command line left out."""
    names = [path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    return sorted(name for name in names if not name.startswith("_") and name != "cli")


def api_page(room: str) -> str:
    """Signatures and docstrings of what `terrazzo.ROOM` exports, read from the source without importing it."""
    entry = PACKAGE / f"{room}.py" if (PACKAGE / f"{room}.py").exists() else PACKAGE / room / "__init__.py"
    tree = ast.parse(entry.read_text(encoding="utf-8"))
    parts = [f"{NOTE}# terrazzo.{room}", ast.get_docstring(tree) or ""]
    parts += [described(node) for node in exports(tree, entry)]
    return "\n\n".join(filter(None, parts)) + "\n"


def exports(tree: ast.Module, entry: Path) -> Iterator[_Definition]:
    """Public functions and classes defined in a file, or imported into an `__init__.py` from its own room."""
    yield from public(tree.body)
    if entry.name != "__init__.py":
        return
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module.removeprefix(f"terrazzo.{entry.parent.name}.").split(".")
            source = entry.parent.joinpath(*inside).with_suffix(".py")
            if source.exists():
                wanted = {alias.name for alias in node.names}
                defined = public(ast.parse(source.read_text(encoding="utf-8")).body)
                yield from (found for found in defined if found.name in wanted)


def public(body: Iterable[ast.stmt]) -> list[_Definition]:
    """Functions and classes whose name has no leading underscore."""
    return [node for node in body if isinstance(node, _Definition) and not node.name.startswith("_")]


def described(node: _Definition) -> str:
    """A heading with the signature, the docstring, and for a class its public methods."""
    parts = [f"## {node.name}", f"```python\n{signature(node)}\n```", _text(ast.get_docstring(node))]
    if isinstance(node, ast.ClassDef):
        methods = [method for method in public(node.body) if ast.get_docstring(method)]
        lines = [f"- `{signature(m).removesuffix(': ...')}`: {_first_line(m)}" for m in methods]
        parts.append("\n".join(lines))
    return "\n\n".join(filter(None, parts))


def signature(node: _Definition) -> str:
    """`def name(arguments) -> result: ...`, or a class with its annotated fields."""
    if isinstance(node, ast.FunctionDef):
        result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"def {node.name}({ast.unparse(node.args)}){result}: ..."
    made = [m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"]
    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    fields = [f"    {ast.unparse(line)}" for line in [*_fields(node), *map(_header, made)]]
    return "\n".join([f"class {node.name}{bases}:", *(fields or ["    ..."])])


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [
        line for line in node.body if isinstance(line, ast.AnnAssign) and not ast.unparse(line.target).startswith("_")
    ]


def _header(function: ast.FunctionDef) -> ast.stmt:
    return ast.parse(signature(function)).body[0]


def _first_line(node: _Definition) -> str:
    return (ast.get_docstring(node) or "").split("\n")[0]


def _text(docstring: str | None) -> str:
    return f"```text\n{docstring}\n```" if docstring and "\n" in docstring else docstring or ""
