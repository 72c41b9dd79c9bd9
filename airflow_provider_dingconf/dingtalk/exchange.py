"""One call from beginning to end, written once for those who wait and those who await.

:func:`exchange` is a generator, as httpx's ``auth_flow`` is: it yields what it wants done, is sent the
result, or thrown the error, and returns what the good answer holds. Its driver does the I/O and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from airflow_provider_dingconf.dingtalk.calls import Call, Request, Response
from airflow_provider_dingconf.dingtalk.errors import (
    AccessTokenError,
    CertificateError,
    CredentialsError,
    RedirectError,
    RefusedError,
    ThrottledError,
)
from airflow_provider_dingconf.dingtalk.responses import CallResult, read_response
from airflow_provider_dingconf.dingtalk.tokens import App, Token, token_from


@dataclass(frozen=True)
class TokenWanted:
    """The wish for an access token: for another one than ``refused``, where DingTalk refused one."""

    refused: Token | None = None


@dataclass
class Attempts:
    """What the attempts of one call share.

    :param made: how many there were.
    :param refused: the token that DingTalk refused: a fresh one is fetched once and no more.
    :param uncertain: whether the call may have taken effect: it was sent, and DingTalk did not say no.
    """

    made: int = 0
    refused: Token | None = None
    uncertain: bool = False


Exchange = Generator["TokenWanted | Request", "Token | Response", CallResult]
Purchase = Generator[Request, Response, Token]


def exchange(
    call: Call, attempts: Attempts, now: Callable[[], float], secrets: Iterable[str] = ()
) -> Exchange:
    """Make a call: get a token, send, and where the token is refused get another one, once, and send again.

    :param call: what to ask for; one that goes with the app's credentials is sent without a token.
    :param attempts: what was tried before for this call.
    :param now: tells the seconds since the epoch.
    :param secrets: what must not stand in the text of an error, whatever DingTalk says.
    :raises DingTalkError: what the answer stands for.
    """
    if call.with_credentials:
        return read_response(call, cast("Response", (yield call.request())), now(), secrets)
    while True:
        token = cast("Token", (yield TokenWanted(attempts.refused)))
        before, attempts.uncertain = attempts.uncertain, True
        try:
            answer = cast("Response", (yield call.request(token.value)))
            return read_response(call, answer, now(), (*secrets, token.value))
        except (RefusedError, ThrottledError, RedirectError, CertificateError) as error:
            attempts.uncertain = before
            if not isinstance(error, AccessTokenError) or attempts.refused is not None or token.static:
                raise
            attempts.refused = token


def purchase(app: App, now: Callable[[], float], pushed_ticket: str | None = None) -> Purchase:
    """Buy an access token.

    :param app: for whom.
    :param now: tells the seconds since the epoch.
    :param pushed_ticket: the suite ticket that DingTalk pushed last, where that is known: it is tried before
        the app's own, which somebody copied.
    :raises DingTalkError: what the answer stands for.
    """
    if pushed_ticket and app.suite_ticket and pushed_ticket != app.suite_ticket:
        try:
            return (yield from _purchase(replace(app, suite_ticket=pushed_ticket), now))
        except CredentialsError as error:
            if error.code != "invalidSuiteTicket":
                raise
    return (yield from _purchase(app, now))


def _purchase(app: App, now: Callable[[], float]) -> Purchase:
    call = replace(app.token_call(), read=partial(token_from, asked_at=now()))
    answer = yield call.request()
    return cast("Token", read_response(call, answer, now(), app.secrets).content)
