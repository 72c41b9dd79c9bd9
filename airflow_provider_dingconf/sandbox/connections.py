"""The Airflow connections that lead to the sandbox, as fields and as a URI."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote, urlencode

from airflow_provider_dingconf.sandbox.state import INTERNAL_APP, THIRD_PARTY_APP, UNPERMITTED_APP, App

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["internal", "third_party", "unified", "static_token", "unpermitted"]
"""The app of a connection, and how it obtains its access token."""

KINDS: Final[Mapping[Kind, tuple[App, tuple[str, ...]]]] = {
    "internal": (INTERNAL_APP, ()),
    "third_party": (THIRD_PARTY_APP, ("corp_id", "suite_ticket")),
    "unified": (INTERNAL_APP, ("corp_id",)),
    "static_token": (App("", ""), ("access_token",)),
    "unpermitted": (UNPERMITTED_APP, ()),
}
"""The app of each kind of connection, and what its ``extra`` holds."""


def as_uri(fields: Mapping[str, Any]) -> str:
    """Return a connection as a URI, written as Airflow's ``Connection.get_uri`` writes it."""
    scheme, separator, address = fields["host"].rpartition("://")
    login, password = (quote(fields.get(name) or "", safe="") for name in ("login", "password"))
    extra = fields.get("extra") or {}
    flat = all(isinstance(value, str) for value in extra.values())
    parts = [
        f"{fields['conn_type']}://{scheme}{separator}",
        f"{login}:{password}@" if login or password else "",
        quote(address, safe=""),
        f":{fields['port']}" if fields.get("port") else "",
        f"/{quote(fields['schema'], safe='')}" if fields.get("schema") else "/" if extra else "",
        f"?{urlencode(extra if flat else {'__extra__': json.dumps(extra)})}" if extra else "",
    ]
    return "".join(parts)
