"""HTML in which text cannot become markup: every string is escaped unless a tag made it."""

from __future__ import annotations

import html
from collections.abc import Container, Iterable, Sequence

_VOID = frozenset({"br", "input", "link", "meta"})


class Html(str):
    """Markup that is safe to put into a page; only `tag`, `join` and `page` make it."""

    __slots__ = ()


Child = str | int | float | None
_Attribute = str | int | float | bool | None


def escape(text: str) -> Html:
    """`text` as content or attribute value; an `Html` stays as it is."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(text.encode("utf-8", "replace").decode("utf-8"), quote=True))


def join(*children: Child) -> Html:
    """Children one after the other; None is nothing."""
    return Html(
        "".join(escape(child if isinstance(child, str) else str(child)) for child in children if child is not None)
    )


def tag(name: str, /, *children: Child, **attributes: _Attribute) -> Html:
    """An element; `class_` and `for_` lose the underscore, other underscores become hyphens, None and False vanish."""
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        shown = key.rstrip("_").replace("_", "-")
        parts.append(shown if value is True else f'{shown}="{escape(str(value))}"')
    opening = " ".join(parts)
    return Html(f"<{opening}>" if name in _VOID else f"<{opening}>{join(*children)}</{name}>")


def page(title: str, style: str, body: Html) -> Html:
    """A whole document that may load nothing and run nothing: its security policy forbids both."""
    head = join(
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        Html(f"<style>\n{style}</style>"),
    )
    return Html(f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n')


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def table(head: Sequence[str], rows: Iterable[Sequence[Child]], numbers: Container[int] = ()) -> Html:
    """A table that scrolls where it is wider than the page; the columns `numbers` are set flush right."""
    looks = ["n" if i in numbers else None for i in range(len(head))]
    top = tag("tr", *(tag("th", name, class_=look) for name, look in zip(head, looks, strict=True)))
    body = [tag("tr", *(tag("td", cell, class_=c) for cell, c in zip(row, looks, strict=True))) for row in rows]
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body)), class_="scroll")


def facts(pairs: Iterable[tuple[str, Child]]) -> Html:
    """Names and values, one pair a line."""
    return tag("dl", *(join(tag("dt", name), tag("dd", value)) for name, value in pairs), class_="facts")


def section(title: str, *children: Child) -> Html:
    """A titled part of the page."""
    return tag("section", tag("h2", title), *children)


def nothing(text: str) -> Html:
    """What stands in place of something that this run does not have."""
    return tag("p", text, class_="none")


def aside(text: str) -> Html:
    """A remark beside a figure."""
    return tag("span", text, class_="aside")
