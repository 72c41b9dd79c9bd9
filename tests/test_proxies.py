"""Which proxy leads to a host. Calls through a real proxy are in ``test_transport``."""

from __future__ import annotations

import base64
import traceback

import pytest

from airflow_provider_dingconf.client.settings import Settings
from airflow_provider_dingconf.dingtalk.errors import InvalidInputError

API = "https://api.dingtalk.io"
STREAM = "wss://wss-open-connection.dingtalk.com:443/connect?ticket=t"


def proxy_of(url: str, own: dict[str, str] | None = None) -> str | None:
    """Return the proxy that a connection with these proxies has for a URL."""
    proxy = Settings(conn_id="c", base_url=API, proxies=own or {}).proxy_for(url)
    return proxy and proxy.url


@pytest.mark.parametrize(
    ("url", "own", "expected"),
    [
        (API, {"https": "http://p:1"}, "http://p:1"),
        (API, {"https": "p:1"}, "http://p:1"),
        (API, {"https": "p"}, "http://p"),
        (API, {"https": "https://P.Example:1/"}, "https://p.example:1"),
        (API, {"https": " http://[::1]:1 "}, "http://[::1]:1"),
        (API, {"HTTPS": "HTTP://my_proxy:1"}, "http://my_proxy:1"),
        (API, {"http": "http://p:1"}, None),
        (API, {"all": "http://p:1"}, "http://p:1"),
        (API, {"all": "http://p:1", "https": "http://p:2"}, "http://p:2"),
        (API, {"https": "http://p:1", "https://api.dingtalk.io": "http://p:2"}, "http://p:2"),
        (API, {"https": "http://p:1", "all://api.dingtalk.io": "http://p:2"}, "http://p:1"),
        (API, {"all": "http://p:1", "all://api.dingtalk.io": "http://p:2"}, "http://p:2"),
        (API, {"https://api.dingtalk.com": "http://p:1"}, None),
        (STREAM, {"https": "http://p:1"}, "http://p:1"),
        (STREAM, {"all": "p:1"}, "http://p:1"),
        (STREAM, {"http": "http://p:1"}, None),
        (STREAM, {"https://wss-open-connection.dingtalk.com": "http://p:1"}, "http://p:1"),
        ("ws://127.0.0.1:9/", {"http": "http://127.0.0.1:1"}, "http://127.0.0.1:1"),
        ("https://127.0.0.1:9", {"https": "http://p:1"}, "http://p:1"),
        ("https://[2001:db8::1]:9", {"https://[2001:db8::1]": "http://p:1"}, "http://p:1"),
    ],
)
def test_the_proxy_of_the_connection(url: str, own: dict[str, str], expected: str | None) -> None:
    assert proxy_of(url, own) == expected


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        (API, {"https_proxy": "http://p:1"}, "http://p:1"),
        (API, {"HTTPS_PROXY": "p:1"}, "http://p:1"),
        (API, {"HTTP_PROXY": "http://p:1"}, None),
        (API, {"ALL_PROXY": "http://p:1"}, "http://p:1"),
        (API, {"all_proxy": "p:1"}, "http://p:1"),
        (API, {"ALL_PROXY": "http://p:1", "HTTPS_PROXY": "http://p:2"}, "http://p:2"),
        (API, {"https_proxy": "http://p:1", "HTTPS_PROXY": "http://p:2"}, "http://p:1"),
        (API, {"https_proxy": "", "HTTPS_PROXY": "http://p:2"}, None),
        (API, {"HTTPS_PROXY": "", "ALL_PROXY": "http://p:1"}, "http://p:1"),
        (STREAM, {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        (STREAM, {"HTTP_PROXY": "http://p:1"}, None),
        ("ws://stream.example", {"HTTP_PROXY": "http://p:1"}, "http://p:1"),
        ("https://127.0.0.1:9", {"HTTPS_PROXY": "http://p:1"}, None),
        ("http://127.0.0.1:9", {"HTTP_PROXY": "http://p:1", "ALL_PROXY": "http://p:1"}, None),
        ("https://localhost", {"ALL_PROXY": "http://p:1"}, None),
        ("https://[::1]:9", {"ALL_PROXY": "socks5://p:1"}, None),
    ],
)
def test_the_proxy_of_the_environment(
    url: str, environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(url) == expected
    assert proxy_of(url, {"all": "http://own:1"}) == "http://own:1", "the connection's own goes first"


@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize(
    ("url", "no_proxy", "exempt"),
    [
        (API, "api.dingtalk.io", True),
        (API, "a.example, dingtalk.io", True),
        (API, ".dingtalk.io", True),
        (API, "*", True),
        (API, "dingtalk.com", False),
        (API, "api.dingtalk.io:8443", False),
        (f"{API}:8443", "api.dingtalk.io:8443", True),
        (STREAM, ".dingtalk.com", True),
        ("https://192.0.2.7", "192.0.2.0/24", True),
        ("https://192.0.2.7:8443", "192.0.2.7", True),
        ("https://192.0.2.7", "198.51.100.0/24", False),
        (API, "192.0.2.0/24", False),
        (API, "", False),
    ],
)
def test_no_proxy_exempts_hosts_from_the_proxy_of_the_environment(
    url: str, no_proxy: str, exempt: bool, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
    monkeypatch.setenv(variable, no_proxy)
    assert proxy_of(url) == (None if exempt else "http://p:1")
    assert proxy_of(url, {"https": "http://own:1"}) == "http://own:1", "the connection's own is not exempt"


@pytest.mark.parametrize("value", ["socks5://u:hidden@p:1", "socks5h://p", "ftp://u:hidden@p", "http://a b"])
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_that_cannot_be_used_names_the_variable(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidInputError, match=f"^environment variable {variable}: ") as caught:
        proxy_of(API)
    assert ("SOCKS" in str(caught.value)) == value.startswith("socks")
    assert "hidden" not in "".join(traceback.format_exception(caught.value))
    monkeypatch.setenv("no_proxy", "dingtalk.io")
    assert proxy_of(API) is None, "a proxy that is not needed is not read"


@pytest.mark.parametrize("of", ["connection", "environment"])
@pytest.mark.parametrize(
    ("credentials", "user", "password"),
    [
        ("user:word", "user", "word"),
        ("user:w%2Brd%23%2F%40%3A", "user", "w+rd#/@:"),
        ("user:w+rd", "user", "w+rd"),
        ("user:a@b#c/d?e", "user", "a@b#c/d?e"),
        ("user:p%C3%A4ss", "user", "päss"),
        ("user:päss会议", "user", "päss会议"),
        ("us%40er:word", "us@er", "word"),
        ("user:100%", "user", "100%"),
        ("user", "user", ""),
        ("user:", "user", ""),
        (":word", "", "word"),
        ("", "", ""),
    ],
)
def test_credentials_of_a_proxy_are_decoded_and_masked_in_every_form(
    credentials: str, user: str, password: str, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://{credentials}@p:1"
    if of == "environment":
        monkeypatch.setenv("HTTPS_PROXY", url)
    settings = Settings(conn_id="c", base_url=API, proxies={"https": url} if of == "connection" else {})
    proxy = settings.proxy_for(API)
    assert proxy is not None
    decoded = base64.b64decode(proxy.headers.get("Proxy-Authorization", "")[6:]).decode().partition(":")
    assert (proxy.url, decoded[0], decoded[2]) == ("http://p:1", user, password)
    sent = base64.b64encode(f"{user}:{password}".encode()).decode()
    assert proxy.headers == ({"Proxy-Authorization": f"Basic {sent}"} if credentials else {})
    written = credentials.partition(":")[2]
    assert set(proxy.secrets) >= ({written, password, sent} if password else set())
    assert set(settings.secrets) == set(proxy.secrets)
    assert all(proxy.secrets), "an empty secret would mask everything"
    assert "word" not in repr(settings) + repr(proxy)
