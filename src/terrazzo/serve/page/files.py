"""The files of the page and the headers that each is served with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

#: The page may load its own files and talk to its own server; nothing else, and no markup of its own runs.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
_MEDIA_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@dataclass(frozen=True, kw_only=True)
class PageFile:
    """One file of the page.

    Args:
        body: its bytes.
        media_type: for Content-Type.
        headers: the others; the ETag changes with the body, so that an updated server is never seen through an old
            script.
    """

    body: bytes
    media_type: str
    headers: dict[str, str]


def page_files() -> dict[str, PageFile]:
    """The files by the path that each is served at, "/" among them; they need no API key, they hold no data."""
    return {"/" if name == "index.html" else f"/page/{name}": _page_file(name) for name in _MEDIA_TYPES}


def _page_file(name: str) -> PageFile:
    body = files("terrazzo.serve.page").joinpath(name).read_bytes()
    headers = {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:16]}"',
    }
    return PageFile(body=body, media_type=_MEDIA_TYPES[name], headers=headers)
