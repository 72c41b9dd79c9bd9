"""Where access tokens are kept between calls, so that each is bought once.

A token belongs to credentials and a host, not to a hook: all hooks, threads and coroutines of a process
share it, and while one of them buys, the others wait.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_dingconf.connection import Settings
    from airflow_provider_dingconf.dingtalk.tokens import Token


@dataclass
class Shelf:
    """The place of one token. Whoever buys it holds ``lock``."""

    token: Token | None = field(default=None, repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def usable(self, refused: Token | None, now: float) -> Token | None:
        """Return the token, unless there is none, it is stale, or it is the one that was refused."""
        if self.token is None or self.token == refused or self.token.stale(now):
            return None
        return self.token


_shelves: dict[bytes, Shelf] = {}


def shelf_of(settings: Settings) -> Shelf:
    """Return the shelf of the connection's credentials: the same for all that ask with the same ones."""
    app = settings.app
    parts = (
        settings.base_url,
        *((app.client_id, app.client_secret, app.corp_id, app.suite_ticket) if app else ()),
    )
    key = sha256(repr(parts).encode()).digest()
    return _shelves.setdefault(key, Shelf())


def forget() -> None:
    """Forget every token of this process."""
    _shelves.clear()
