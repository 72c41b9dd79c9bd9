"""One call from beginning to end, driven by hand: no wire, no clock."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_dingconf.dingtalk.calls import TOKEN_HEADER, Request, Response, lock_call
from airflow_provider_dingconf.dingtalk.errors import (
    AccessTokenError,
    CredentialsError,
    ResponseError,
    ServerError,
)
from airflow_provider_dingconf.dingtalk.exchange import Attempts, TokenWanted, exchange, purchase
from airflow_provider_dingconf.dingtalk.tokens import App, Token

CALL = lock_call("conference", "lock")
FIRST, SECOND = Token("first", 0.0, 7200.0), Token("second", 1.0, 7200.0)


def now() -> float:
    """Tell the time."""
    return 42.0


def answer(status: int, **body: Any) -> Response:
    """Return an answer with a JSON body."""
    return Response(status, {}, json.dumps(body).encode())


GOOD, REFUSED = answer(200, success=True), answer(400, code="InvalidAuthentication")


def token_of(request: object) -> str:
    """Return the token that a request carries."""
    assert isinstance(request, Request)
    return request.headers[TOKEN_HEADER]


def test_a_call_asks_for_a_token_sends_and_ends() -> None:
    steps = exchange(CALL, Attempts(), now)
    assert next(steps) == TokenWanted(None)
    assert token_of(steps.send(FIRST)) == "first"
    with pytest.raises(StopIteration) as end:
        steps.send(GOOD)
    assert end.value.value.content == {"success": True}


def test_a_refused_token_is_replaced_once_and_the_call_sent_again() -> None:
    steps = exchange(CALL, Attempts(), now)
    next(steps)
    steps.send(FIRST)
    assert steps.send(REFUSED) == TokenWanted(refused=FIRST)
    assert token_of(steps.send(SECOND)) == "second"
    with pytest.raises(AccessTokenError):
        steps.send(REFUSED)


def test_the_attempts_of_a_call_share_their_one_fresh_token() -> None:
    attempts = Attempts()
    steps = exchange(CALL, attempts, now)
    next(steps)
    steps.send(FIRST)
    steps.send(REFUSED)
    steps.send(SECOND)
    with pytest.raises(ServerError):
        steps.send(answer(500, code="systemError"))
    again = exchange(CALL, attempts, now)
    assert next(again) == TokenWanted(refused=FIRST)
    again.send(SECOND)
    with pytest.raises(AccessTokenError):
        again.send(REFUSED)


def test_a_static_token_cannot_be_replaced() -> None:
    steps = exchange(CALL, Attempts(), now)
    next(steps)
    steps.send(Token("static"))
    with pytest.raises(AccessTokenError):
        steps.send(REFUSED)


def test_the_token_of_the_call_is_masked_in_its_error() -> None:
    steps = exchange(CALL, Attempts(), now, ["the-secret"])
    next(steps)
    steps.send(Token("hidden-token", 0.0, 7200.0))
    with pytest.raises(ServerError) as caught:
        steps.send(answer(500, message="hidden-token of the-secret"))
    assert caught.value.message == "*** of ***"


def test_a_purchase_is_dated_when_it_was_asked_for() -> None:
    steps = purchase(App("id", "the-secret"), now)
    assert TOKEN_HEADER not in next(steps).headers
    with pytest.raises(StopIteration) as end:
        steps.send(answer(200, accessToken="bought", expireIn=7200))
    assert end.value.value == Token("bought", 42.0, 7200.0)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (answer(400, code="invalidClientIdOrSecret", message="the-secret is wrong"), CredentialsError),
        (answer(200, expireIn=7200), ResponseError),
    ],
)
def test_a_purchase_that_fails_is_an_error_without_the_secret(bad: Response, kind: type[Exception]) -> None:
    steps = purchase(App("id", "the-secret"), now)
    next(steps)
    with pytest.raises(kind) as caught:
        steps.send(bad)
    assert "the-secret" not in str(caught.value)
