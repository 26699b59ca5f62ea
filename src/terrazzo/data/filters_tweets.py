"""Posts from social networks the way BERTuit normalises them.

Reference: Huertas-Tato et al., BERTuit, arXiv 2204.03465: user mentions and URLs become tags.
"""

from __future__ import annotations

import html
import re

from terrazzo.data.filters import drops

USER, URL = "<usr>", "<url>"


@drops("blank")
def unescape_html(text: str) -> str:
    """`&amp;` and its kin, which the services' interfaces deliver, become the characters that people typed."""
    return html.unescape(text) if "&" in text else text


@drops("blank")
def tag_users_and_urls(text: str) -> str:
    """Mentions become `<usr>`, addresses `<url>`; so do `_usr` and `_url`, which some published collections hold."""
    if "http" in text or "www." in text or "_url" in text:
        text = _URL.sub(URL, text)
    return _USER.sub(USER, text) if "@" in text or "_usr" in text else text


@drops("only user and URL tags")
def more_than_tags(text: str) -> str | None:
    """Drop posts that hold no word beside tags."""
    return text if any(word not in (USER, URL, "RT", ":") for word in text.split()) else None


_URL = re.compile(r"https?://\S+|www\.\S+|(?<!\w)_url(?!\w)")
_USER = re.compile(r"(?<![\w@])@+\w{1,30}|(?<!\w)_usr(?!\w)")
