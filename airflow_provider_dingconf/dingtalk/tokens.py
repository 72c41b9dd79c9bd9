"""Access tokens: the call that fetches one for each kind of app, its response, and when a token is renewed.

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

RENEW_AFTER = 7_000 / 7_200
"""The share of a token's lifetime after which it is renewed."""

_MAX_LIFETIME = 10**9  # seconds: anything longer is no lifetime, and no date can be made of it


@dataclass(frozen=True)
class App:
    """The credentials of an app, and the organisation it acts for.

    :param client_id: Client ID (AppKey, SuiteKey).
    :param client_secret: Client Secret (AppSecret, SuiteSecret).
    :param corp_id: the organisation (corpId); selects the unified token call.
    :param suite_ticket: DingTalk's newest suite ticket; selects the third-party token call.
    """

    client_id: str
    client_secret: str = field(repr=False)
    corp_id: str | None = None
    suite_ticket: str | None = field(default=None, repr=False)

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
        client, secret = self.client_id, self.client_secret
        body: dict[str, str | None]
        if self.suite_ticket:
            form, body = "corpAccessToken", {"authCorpId": self.corp_id, "suiteKey": client}
            body |= {"suiteSecret": secret, "suiteTicket": self.suite_ticket}
        elif self.corp_id:
            form, body = f"{self.corp_id}/token", {"client_id": client, "client_secret": secret}
            body["grant_type"] = "client_credentials"
        else:
            form, body = "accessToken", {"appKey": client, "appSecret": secret}
        return call_to(ACCESS_TOKEN, form, body=body)


@dataclass(frozen=True)
class Token:
    """An access token.

    :param value: the content of the header; never shown.
    :param fetched_at: when it was requested, in seconds since the epoch by the clock of whoever fetched it.
    :param lifetime: its lifetime in seconds; None for a token from elsewhere, which cannot be renewed.
    """

    value: str = field(repr=False)
    fetched_at: float = 0.0
    lifetime: float | None = None

    @property
    def static(self) -> bool:
        """Whether the token comes from elsewhere."""
        return self.lifetime is None


def read_token(content: Mapping[str, Any], fetched_at: float) -> Token:
    """Return the token in the response to a token call.

    :param content: the response's JSON.
    :param fetched_at: when the call was sent, in seconds.
    :raises ResponseError: the response holds no usable token.
    """
    value = content.get("accessToken", content.get("access_token"))
    if not isinstance(value, str) or not re.fullmatch(r"[\x21-\x7e]+", value):
        raise ResponseError("the response to the token call holds no access token", code="unreadableAnswer")
    lifetime = content.get("expireIn", content.get("expires_in"))
    if type(lifetime) not in (int, float) or not 0 < lifetime <= _MAX_LIFETIME:
        raise ResponseError("the response does not say how long the token lives", code="unreadableAnswer")
    return Token(value, fetched_at, float(lifetime))
