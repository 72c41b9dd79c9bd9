"""A window to look through."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from system.ui.window import Window, chromium


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Window]:
    """Return a window of a browser that knows nothing of other modules' tests."""
    with chromium(tmp_path_factory.mktemp("window")) as opened:
        yield opened
