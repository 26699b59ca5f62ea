"""The page at / and its files."""

from __future__ import annotations

from terrazzo.serve.endpoints import Answer, Here, Operation, Run
from terrazzo.serve.page.files import PageFile, page_files


def operations() -> tuple[Operation, ...]:
    """One operation a file; they need no API key, since they hold no data."""
    return tuple(
        Operation(path=path, method="GET", run=_given(file), reply=None, summary="", tag="", open=True)
        for path, file in page_files().items()
    )


def _given(file: PageFile) -> Run:
    answer = Answer(body=file.body, media_type=file.media_type, headers=file.headers)

    async def give(here: Here) -> Answer:
        return answer

    return give
