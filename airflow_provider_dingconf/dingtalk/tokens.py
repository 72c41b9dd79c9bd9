"""Access tokens: which call buys one for which kind of app, what its answer holds, when one is stale.

Source: `Obtain the access token of an internal app
<https://help.dingtalk.io/open/development/obtain-the-access-token-of-an-internal-app>`__ and the pages
beside it. A token lives 7,200 seconds, and DingTalk suggests renewing it after 7,000.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_dingconf.dingtalk.calls import Call
from airflow_provider_dingconf.dingtalk.errors import ResponseError

if TYPE_CHECKING:
    from collections.abc import Mapping

RENEW_AFTER = 7_000 / 7_200
"""The share of a token's lifetime after which it is renewed."""

_LONGEST_LIFETIME = 10**9  # seconds: what is longer is no lifetime, and no date can be made of it

_SENDABLE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class App:
    """Who asks DingTalk: the credentials of an app, and the organisation it acts for.

    :param client_id: Client ID (AppKey, SuiteKey).
    :param client_secret: Client Secret (AppSecret, SuiteSecret).
    :param corp_id: the organisation (corpId): with it, the unified token call is made.
    :param suite_ticket: DingTalk's newest suite ticket: with it, the third-party token call is made.
    """

    client_id: str
    client_secret: str = field(repr=False)
    corp_id: str | None = None
    suite_ticket: str | None = field(default=None, repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must be shown to no one."""
        return tuple(secret for secret in (self.client_secret, self.suite_ticket) if secret)

    @property
    def kind(self) -> str:
        """What kind of app the credentials are of, in DingTalk's words."""
        if self.suite_ticket:
            return "third-party app"
        return "app, by the unified token call" if self.corp_id else "internal app"

    def token_call(self) -> Call:
        """Return the call that buys an access token for this kind of app."""
        if self.suite_ticket:
            return _token_call(
                "/v1.0/oauth2/corpAccessToken",
                {
                    "authCorpId": self.corp_id,
                    "suiteKey": self.client_id,
                    "suiteSecret": self.client_secret,
                    "suiteTicket": self.suite_ticket,
                },
            )
        if self.corp_id:
            return _token_call(
                f"/v1.0/oauth2/{self.corp_id}/token",
                {
                    "client_id": self.client_id,
                    "client_secret": self.client_secret,
                    "grant_type": "client_credentials",
                },
            )
        return _token_call(
            "/v1.0/oauth2/accessToken", {"appKey": self.client_id, "appSecret": self.client_secret}
        )


def _token_call(path: str, body: Mapping[str, Any]) -> Call:
    return Call(
        name="access token",
        method="POST",
        path=path,
        body=body,
        page="obtain-the-access-token-of-an-internal-app",
        with_credentials=True,
    )


@dataclass(frozen=True)
class Token:
    """An access token.

    :param value: what goes into the header; never shown.
    :param bought_at: when it was asked for, in seconds of the clock that :meth:`stale` is asked with.
    :param lifetime: seconds it lives; None for a token bought elsewhere, which cannot be renewed.
    """

    value: str = field(repr=False)
    bought_at: float = 0.0
    lifetime: float | None = None

    @property
    def static(self) -> bool:
        """Whether the token was bought elsewhere."""
        return self.lifetime is None

    def stale(self, now: float) -> bool:
        """Return whether the token is to be renewed, or dates from a future that a clock took back."""
        if self.lifetime is None:
            return False
        return not 0 <= now - self.bought_at < self.lifetime * RENEW_AFTER

    def newer(self, other: Token, now: float) -> bool:
        """Return whether the token, which is not stale, was bought after another one.

        DingTalk may give the same value again, renewed; an older one is no help where a newer was refused.
        """
        the_clock_went_back = other.bought_at > now
        return self != other and (self.bought_at >= other.bought_at or the_clock_went_back)


def token_from(content: Mapping[str, Any], asked_at: float) -> Token:
    """Return the token in the answer to a token call.

    :param content: the answer's JSON body.
    :param asked_at: when the call was sent, in seconds.
    :raises ResponseError: the answer holds no usable token.
    """
    value = content.get("accessToken", content.get("access_token"))
    lifetime = content.get("expireIn", content.get("expires_in"))
    if not isinstance(value, str) or not _SENDABLE.fullmatch(value):
        raise ResponseError("the answer to the token call holds no access token", code="unreadableAnswer")
    if (
        isinstance(lifetime, bool)
        or not isinstance(lifetime, (int, float))
        or not 0 < lifetime <= _LONGEST_LIFETIME
    ):
        raise ResponseError(
            "the answer to the token call does not say how long the token lives", code="unreadableAnswer"
        )
    return Token(value, asked_at, float(lifetime))
