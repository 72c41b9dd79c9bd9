"""Access tokens: the calls that fetch one, by the kind of app, and the responses.

Source: `Obtain the access token of an internal app
<https://help.dingtalk.io/open/development/obtain-the-access-token-of-an-internal-app>`__ and the pages
beside it. A token lives 7,200 seconds, and DingTalk suggests renewing it after 7,000.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_dingconf.dingtalk.calls import Call, call_to
from airflow_provider_dingconf.dingtalk.endpoints import ACCESS_TOKEN
from airflow_provider_dingconf.dingtalk.errors import ResponseError

if TYPE_CHECKING:
    from collections.abc import Mapping

RENEW_AFTER = 7_000 / 7_200  # the share of a token's lifetime after which it is renewed
_MAX_LIFETIME = 10**9  # seconds: a longer one is a mistake, and too long for a date


@dataclass(frozen=True)
class App:
    """The credentials of an app, and the organisation it acts for."""

    client_id: str  # Client ID (AppKey, SuiteKey)
    client_secret: str = field(repr=False)  # Client Secret (AppSecret, SuiteSecret)
    corp_id: str | None = None  # the organisation; selects the unified token call
    suite_ticket: str | None = field(default=None, repr=False)  # selects the third-party token call

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be shown."""
        return tuple(secret for secret in (self.client_secret, self.suite_ticket) if secret)

    @property
    def kind(self) -> str:
        """The kind of app, in DingTalk's words."""
        if self.suite_ticket:
            return "third-party app"
        return "app, by the unified token call" if self.corp_id else "internal app"

    def token_call(self) -> Call:
        """Return the call that fetches an access token for this kind of app."""
        if self.suite_ticket:
            suite = {"authCorpId": self.corp_id, "suiteKey": self.client_id}
            suite |= {"suiteSecret": self.client_secret, "suiteTicket": self.suite_ticket}
            return call_to(ACCESS_TOKEN, "corpAccessToken", body=suite)
        if self.corp_id:
            client = {"client_id": self.client_id, "client_secret": self.client_secret}
            client["grant_type"] = "client_credentials"
            return call_to(ACCESS_TOKEN, f"{self.corp_id}/token", body=client)
        body = {"appKey": self.client_id, "appSecret": self.client_secret}
        return call_to(ACCESS_TOKEN, "accessToken", body=body)


@dataclass(frozen=True)
class Token:
    """An access token."""

    value: str = field(repr=False)
    fetched_at: float = 0.0  # when it was requested, in seconds since the epoch
    lifetime: float | None = None  # in seconds; None for a token from elsewhere, which cannot be renewed

    @property
    def static(self) -> bool:
        """Whether the token comes from elsewhere."""
        return self.lifetime is None


def read_token(content: Mapping[str, Any], fetched_at: float) -> Token:
    """Return the token in the response to a token call that was sent at ``fetched_at``, in seconds."""
    value = content.get("accessToken", content.get("access_token"))
    if not isinstance(value, str) or not re.fullmatch(r"[\x21-\x7e]+", value):
        raise ResponseError("the response to the token call holds no access token", code="unreadableAnswer")
    lifetime = content.get("expireIn", content.get("expires_in"))
    if type(lifetime) not in (int, float) or not 0 < lifetime <= _MAX_LIFETIME:
        raise ResponseError("the response does not say how long the token lives", code="unreadableAnswer")
    return Token(value, fetched_at, float(lifetime))
