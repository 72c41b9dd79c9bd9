"""A sandbox, and someone who calls it over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import requests

from airflow_provider_dingconf.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFERENCES = "/v1.0/conference/videoConferences"
OPEN = "/v1.0/gateway/connections/open"
STREAM = {
    "clientId": Sandbox.client_id,
    "clientSecret": Sandbox.client_secret,
    "subscriptions": [{"type": "EVENT", "topic": "*"}],
}
TOKEN_HEADER = "x-acs-dingtalk-access-token"


class Caller(requests.Session):
    """Someone who calls a sandbox as DingTalk is called."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__()
        self.sandbox = sandbox
        # A proxy of the environment is not for the loopback address.
        self.trust_env = False
        self.headers[TOKEN_HEADER] = sandbox.issue_token()

    def call(self, method: str, path: str, json: Any = None, **options: Any) -> requests.Response:
        """Call a path of the sandbox."""
        options = {"allow_redirects": False, "timeout": 30, "verify": False} | options
        return self.request(method, self.sandbox.url + path, json=json, **options)

    def lock(self, conference_id: str, action: str = "lock", **options: Any) -> requests.Response:
        """Lock or unlock a meeting."""
        return self.call("POST", f"{CONFERENCES}/{conference_id}/lock", {"action": action}, **options)

    def control(self, method: str, path: str, json: Any = None, **options: Any) -> requests.Response:
        """Call the sandbox's own interface."""
        return self.call(method, "/sandbox" + path, json, **options)


class Clock:
    """The sandbox's clock: a test moves it on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return the clock by which access tokens, tickets, faults and the rate limit of the sandbox expire."""
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    """Return a running sandbox."""
    with Sandbox(clock=clock) as running:
        yield running


@pytest.fixture
def caller(sandbox: Sandbox) -> Iterator[Caller]:
    """Return someone who has an access token of the sandbox."""
    with Caller(sandbox) as made:
        yield made


def code(response: requests.Response) -> tuple[int, str]:
    """Return the HTTP status and the error code of a response."""
    return response.status_code, response.json()["code"]
