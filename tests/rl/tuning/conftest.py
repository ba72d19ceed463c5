"""The processes of a search end with the tests of its file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rltrain.jobs import functions


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    yield
    functions.close()
