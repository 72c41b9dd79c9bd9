"""The connection: every way to write it down means the same, and every mistake is one clear error."""

from __future__ import annotations

import errno
import json
import os
import re
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from airflow.models import Connection

from airflow_provider_dingconf.client.settings import Settings, Timeout, read_connection
from airflow_provider_dingconf.dingtalk.errors import InvalidConnectionError
from airflow_provider_dingconf.dingtalk.tokens import App, Token
from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE

if TYPE_CHECKING:
    from conftest import Certificates

PLAIN = Settings(conn_id="dingtalk_default", base_url="https://api.dingtalk.io", app=App("id", "the-secret"))


def plain_but(**changes: Any) -> Settings:
    """Return the settings of a connection of which all but this is empty."""
    return PLAIN.model_copy(update=changes)


def by_uri(uri: str) -> Settings:
    """Read a connection that Airflow gets as a URI."""
    return read_connection(Connection(conn_id="dingtalk_default", uri=uri), "dingtalk_default")


def by_json(**fields: Any) -> Settings:
    """Read a connection that Airflow gets as JSON."""
    text = json.dumps({"conn_type": "dingtalk", "login": "id", "password": "the-secret"} | fields)
    return read_connection(Connection.from_json(text, conn_id="dingtalk_default"), "dingtalk_default")


def by_form(**fields: Any) -> Settings:
    """Read a connection as the UI stores it: its extra is a text."""
    fields = {"conn_type": "dingtalk", "login": "id", "password": "the-secret"} | fields
    if isinstance(fields.get("extra"), dict):
        fields["extra"] = json.dumps(fields["extra"])
    return read_connection(Connection(conn_id="dingtalk_default", **fields), "dingtalk_default")


# Each row: a URI, the fields that mean the same, and what they mean.
SAME = {
    "empty host": ("dingtalk://id:the-secret@", {}, PLAIN),
    "host": (
        "dingtalk://id:the-secret@api.dingtalk.com",
        {"host": "api.dingtalk.com"},
        plain_but(base_url="https://api.dingtalk.com"),
    ),
    "host with a scheme": (
        "dingtalk://https://id:the-secret@api.dingtalk.com",
        {"host": "https://api.dingtalk.com"},
        plain_but(base_url="https://api.dingtalk.com"),
    ),
    "scheme as schema": (
        "dingtalk://id:the-secret@api.dingtalk.com/https",
        {"host": "api.dingtalk.com", "schema": "https"},
        plain_but(base_url="https://api.dingtalk.com"),
    ),
    "host and port": (
        "dingtalk://id:the-secret@proxy.example:8443",
        {"host": "proxy.example", "port": 8443},
        plain_but(base_url="https://proxy.example:8443"),
    ),
    "http to loopback": (
        "dingtalk://http://id:the-secret@127.0.0.1:8790",
        {"host": "http://127.0.0.1", "port": 8790},
        plain_but(base_url="http://127.0.0.1:8790"),
    ),
    "address of IPv6": (
        "dingtalk://id:the-secret@[::1]:8790/http",
        {"host": "::1", "schema": "http", "port": 8790},
        plain_but(base_url="http://[::1]:8790"),
    ),
    "address of IPv6 with a scheme": (
        "dingtalk://https://id:the-secret@[2001:db8::1]",
        {"host": "https://2001:db8::1"},
        plain_but(base_url="https://[2001:db8::1]"),
    ),
    "secrets with every kind of character": (
        "dingtalk://i%40d:p%2F%3A%40%25%23%3F%2Bs@",
        {"login": "i@d", "password": "p/:@%#?+s"},
        plain_but(app=App("i@d", "p/:@%#?+s")),
    ),
    "unified": (
        "dingtalk://id:the-secret@/?corp_id=dingcorp",
        {"extra": {"corp_id": "dingcorp"}},
        plain_but(app=App("id", "the-secret", "dingcorp")),
    ),
    "third party": (
        "dingtalk://id:the-secret@/?corp_id=dingcorp&suite_ticket=tick%2Bet",
        {"extra": {"corp_id": "dingcorp", "suite_ticket": "tick+et"}},
        plain_but(app=App("id", "the-secret", "dingcorp", "tick+et")),
    ),
    "static token": (
        "dingtalk:///?access_token=a-token",
        {"login": None, "password": None, "extra": {"access_token": "a-token"}},
        plain_but(app=None, static_token=Token("a-token")),
    ),
    "empty extras": (
        "dingtalk://id:the-secret@/?corp_id=&suite_ticket=&access_token=&timeout=&proxies=&verify=&cert="
        "&calls_per_second=&stream_silence=&token_cache=",
        {
            "extra": dict.fromkeys(
                (
                    *("corp_id", "suite_ticket", "access_token", "timeout", "proxies", "verify", "cert"),
                    *("calls_per_second", "stream_silence", "token_cache"),
                ),
                "",
            )
        },
        PLAIN,
    ),
    "timeout": (
        "dingtalk://id:the-secret@/?timeout=2.5",
        {"extra": {"timeout": 2.5}},
        plain_but(timeout=Timeout(2.5, 2.5)),
    ),
    "timeouts": (
        "dingtalk://id:the-secret@/?timeout=%5B3%2C+20%5D",
        {"extra": {"timeout": [3, 20]}},
        plain_but(timeout=Timeout(3, 20)),
    ),
    "proxies": (
        "dingtalk://id:the-secret@/?proxies=%7B%22https%22%3A+%22http%3A%2F%2Fproxy%3A3128%22%7D",
        {"extra": {"proxies": {"https": "http://proxy:3128"}}},
        plain_but(proxies={"https": "http://proxy:3128"}),
    ),
    "proxy without a scheme": (
        "dingtalk://id:the-secret@/?proxies=%7B%22ALL%22%3A+%22u%3Ap%40proxy%3A3128%22%7D",
        {"extra": {"proxies": {"ALL": "u:p@proxy:3128"}}},
        plain_but(proxies={"all": "u:p@proxy:3128"}),
    ),
    "calls per second": (
        "dingtalk://id:the-secret@/?calls_per_second=0.5",
        {"extra": {"calls_per_second": 0.5}},
        plain_but(calls_per_second=0.5),
    ),
    "stream silence": (
        "dingtalk://id:the-secret@/?stream_silence=600",
        {"extra": {"stream_silence": 600}},
        plain_but(stream_silence=600),
    ),
    "no verification": (
        "dingtalk://id:the-secret@/?verify=False",
        {"extra": {"verify": False}},
        plain_but(verify=False),
    ),
    "verification": ("dingtalk://id:the-secret@/?verify=true", {"extra": {"verify": True}}, PLAIN),
    "no sharing of tokens": (
        "dingtalk://id:the-secret@/?token_cache=no",
        {"extra": {"token_cache": False}},
        plain_but(token_cache=False),
    ),
    "sharing of tokens elsewhere": (
        "dingtalk://id:the-secret@/?token_cache=%2Fvar%2Fcache%2Fdingtalk",
        {"extra": {"token_cache": "/var/cache/dingtalk"}},
        plain_but(token_cache="/var/cache/dingtalk"),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_a_connection_means_the_same_as_a_uri_as_json_and_in_the_form(name: str) -> None:
    uri, fields, settings = SAME[name]
    assert by_uri(uri) == settings
    assert by_json(**fields) == settings
    assert by_form(**fields) == settings
    extra = {key: value if isinstance(value, str) else json.dumps(value) for key, value in
             fields.get("extra", {}).items()}  # fmt: skip
    assert by_form(**fields | {"extra": extra}) == settings, "the form's fields are all texts"
    twice = extra | {f"extra__dingtalk__{key}": value for key, value in extra.items()}
    assert by_form(**fields | {"extra": twice}) == settings, "the Test button of Airflow 2 sends them twice"


@pytest.mark.parametrize(
    ("fields", "base_url"),
    [
        ({"host": "https://api.dingtalk.io/"}, "https://api.dingtalk.io"),
        ({"host": "  api.dingtalk.io  "}, "https://api.dingtalk.io"),
        ({"host": "HTTPS://API.DingTalk.IO"}, "https://api.dingtalk.io"),
        ({"host": "api.dingtalk.io:443"}, "https://api.dingtalk.io"),
        ({"host": "api.dingtalk.io:8443", "port": 8443}, "https://api.dingtalk.io:8443"),
        ({"host": "http://localhost:1"}, "http://localhost:1"),
        ({"host": "http://127.8.9.10"}, "http://127.8.9.10"),
        ({"host": "http://[::1]:80"}, "http://[::1]"),
        ({"host": "::1", "schema": "http"}, "http://[::1]"),
        ({"host": "2001:DB8::1", "port": 65535}, "https://[2001:db8::1]:65535"),
        ({"host": "192.0.2.1", "port": 1}, "https://192.0.2.1:1"),
        ({"host": f"{'a' * 63}.example."}, f"https://{'a' * 63}.example."),
        ({"host": "a" + ".a" * 126}, "https://a" + ".a" * 126),
        ({"host": "api.dingtalk.io", "port": 0}, "https://api.dingtalk.io"),
        ({"host": "api.dingtalk.io", "port": "8443"}, "https://api.dingtalk.io:8443"),
        ({"host": "api.dingtalk.io:8443", "port": "8443"}, "https://api.dingtalk.io:8443"),
        ({"host": "localhost", "schema": "http", "port": 80}, "http://localhost"),
        ({"host": "api.dingtalk.io", "schema": "HTTPS"}, "https://api.dingtalk.io"),
        ({"schema": "https"}, "https://api.dingtalk.io"),
    ],
)
def test_where_a_connection_leads(fields: dict[str, Any], base_url: str) -> None:
    assert by_form(**fields).base_url == base_url


# Each row: the fields, the field that the error names, and a part of the hint. "hidden" marks a secret.
WRONG = {
    "no login": ({"login": None}, "login (Client ID)", "missing"),
    "empty login": ({"login": ""}, "login (Client ID)", "missing"),
    "no password": ({"password": None}, "password (Client Secret)", "missing"),
    "nothing": ({"login": None, "password": None}, "login (Client ID)", "access_token"),
    "secret of two lines": ({"password": "hidden\nhidden"}, "password (Client Secret)", "copied in full"),
    "secret with a space": ({"password": "hidden "}, "password (Client Secret)", "white space"),
    "secret not ASCII": ({"password": "hidden会议"}, "password (Client Secret)", "ASCII"),
    "login with a space": ({"login": "a b"}, "login (Client ID)", "white space"),
    "token with a line break": (
        {"extra": {"access_token": "hidden\r\nX: y"}},
        "extra 'access_token'",
        "white",
    ),
    "token no text": ({"extra": {"access_token": ["hidden"]}}, "extra 'access_token'", "string, got list"),
    "ticket without organisation": (
        {"extra": {"suite_ticket": "hidden"}},
        "extra 'suite_ticket'",
        "'corp_id'",
    ),
    "ticket no text": ({"extra": {"corp_id": "c", "suite_ticket": 7}}, "extra 'suite_ticket'", "got int"),
    "organisation two segments": ({"extra": {"corp_id": "a/b"}}, "extra 'corp_id'", "corpId"),
    "organisation a parent": ({"extra": {"corp_id": ".."}}, "extra 'corp_id'", "corpId"),
    "two values": (
        {"extra": {"corp_id": "dingcorp", "extra__dingtalk__corp_id": "hidden"}},
        "extra 'extra__dingtalk__corp_id'",
        "unknown",
    ),
    "unknown key": ({"extra": {"corpid": "hidden"}}, "extra 'corpid'", "did you mean 'corp_id'?"),
    "key of another case": ({"extra": {"Access_Token": "hidden"}}, "extra 'Access_Token'", "'access_token'?"),
    "header as a key": (
        {"extra": {"X-Env": "hidden"}},
        "extra 'X-Env'",
        "known are access_token, calls_per_second, cert, corp_id",
    ),
    "http": ({"host": "http://api.dingtalk.io"}, "host", "use https"),
    "http in schema": ({"host": "api.dingtalk.io", "schema": "http"}, "host", "use https"),
    "http without a host": ({"schema": "http"}, "schema", "contradicts"),
    "http to a name like loopback": ({"host": "http://127.0.0.1.nip.io"}, "host", "use https"),
    "http to a name that begins so": ({"host": "http://localhost.example"}, "host", "use https"),
    "http to any address": ({"host": "http://0.0.0.0"}, "host", "use https"),
    "other scheme": ({"host": "ftp://api.dingtalk.io"}, "host", "not a host"),
    "other schema": ({"host": "api.dingtalk.io", "schema": "ftp"}, "schema", "http or https"),
    "two schemes": ({"host": "https://localhost", "schema": "http"}, "schema", "contradicts"),
    "two ports": ({"host": "api.dingtalk.io:1", "port": 2}, "port", "contradicts"),
    "credentials in the host": ({"host": "https://id:hidden@api.dingtalk.io"}, "host", "login and password"),
    "path in the host": ({"host": "https://api.dingtalk.io/v1.0"}, "host", "not a host"),
    "query in the host": ({"host": "https://api.dingtalk.io?access_token=hidden"}, "host", "not a host"),
    "webhook as a host": (
        {"host": "https://oapi.dingtalk.com/robot/send?access_token=hidden"},
        "host",
        "not a",
    ),
    "port no number": ({"host": "api.dingtalk.io:x"}, "host", "not a host"),
    "port too great": ({"host": "api.dingtalk.io:99999"}, "host", "not a host"),
    "host not ASCII": ({"host": "钉钉.example"}, "host", "not a host"),
    "host with a space": ({"host": "api .dingtalk.io"}, "host", "not a host"),
    "no host at all": ({"host": "https://"}, "host", "not a host"),
    "port 0 in the host": ({"host": "api.dingtalk.io:0"}, "host", "not a host"),
    **{
        f"port {port!r}": ({"port": port}, "port", "from 1 to 65535")
        for port in (-1, 65536, 70000, 10**6, "https", "\u0663", 44.3, "1 ")
    },
    **{
        f"host {host[:40]}": ({"host": host}, "host", "no host can have this name")
        for host in (
            "a..b",
            ".a",
            "a" * 64 + ".com",
            "a" + ".a" * 127,
            "256.1.1.1",
            "1.2.3",
            "..",
            "https://a..b",
        )
    },
    **{
        f"stream_silence {value!r}": (
            {"extra": {"stream_silence": value}},
            "extra 'stream_silence'",
            "number of seconds above 0 and up to a day",
        )
        for value in (0, -1, True, "never", 86_401)
    },
    **{
        f"host {host}": ({"host": host}, "host", "host")
        for host in ("[a.b]", "[v1.a]", "[1:2]", "::1]", "1:2:3")
    },
    **{
        f"timeout {value!r}": ({"extra": {"timeout": value}}, "extra 'timeout'", "seconds")
        for value in (
            *(0, -1, "soon", True, [1], [1, 2, 3], [1, 0], {"read": 1}, "NaN", "inf", "[1, 2"),
            *(86_401, "1e10", [1, 1e300]),
        )
    },
    **{
        f"proxies {value!r}": ({"extra": {"proxies": value}}, "extra 'proxies'", "proxy URLs")
        for value in (
            *("http://proxy:3128", ["http://proxy:3128"], {"https": 1}, {"https": None}, "{"),
            *({"htps": "http://proxy:3128"}, {"https://": "http://proxy:3128"}),
        )
    },
    **{
        f"proxy of another machine for {scheme}": (
            {
                "host": "http://127.0.0.1:8765",
                "extra": {"proxies": {scheme: "http://u:hidden@proxy.example:3128"}},
            },
            "extra 'proxies'",
            "plain http",
        )
        for scheme in ("http", "all", "http://127.0.0.1")
    },
    **{
        f"proxy {url!r}": ({"extra": {"proxies": {"https": url}}}, "extra 'proxies'", "URL of an HTTP proxy")
        for url in (
            *("", "http://", "://", "ftp://u:hidden@proxy", "http://[::1", "http://proxy:99999", "proxy:0"),
            *("http://a b", "http://u:hidden@proxy/path", "http://u:hidden@proxy?a=b", "http://u:hidden@"),
        )
    },
    **{
        f"proxy of {scheme}": (
            {"extra": {"proxies": {"https": f"{scheme}://u:hidden@proxy:1080"}}},
            "extra 'proxies'",
            f"a SOCKS proxy ({scheme.lower()}) cannot be used",
        )
        for scheme in ("socks5", "socks5h", "socks4", "SOCKS5")
    },
    "proxy user with a colon": (
        {"extra": {"proxies": {"https": "http://u%3Ax:hidden@proxy"}}},
        "extra 'proxies'",
        "colon",
    ),
    "proxy password of no character": (
        {"extra": {"proxies": {"https": "http://u:hidden\ud800@proxy"}}},
        "extra 'proxies'",
        "cannot be sent",
    ),
    **{
        f"calls_per_second {value!r}": (
            {"extra": {"calls_per_second": value}},
            "extra 'calls_per_second'",
            "number of calls above 0",
        )
        for value in (0, -1, True, "many", "inf", "NaN", [18], {"a": 1}, 10**400)
    },
    **{
        f"host {host}": ({"host": host}, "host", "leave Host empty, or use api.dingtalk.com for mainland")
        for host in (
            "oapi.dingtalk.com",
            "https://open.dingtalk.com/",
            "OAPI.dingtalk.com.",
            "help.dingtalk.io",
        )
    },
    **{
        f"type {kind}": ({"conn_type": kind}, "conn_type (Connection Type)", hint)
        for kind, hint in {
            "http": "'http'; this needs a connection of type dingtalk",
            "generic": "'generic'; this needs",
            "dingding": "Airflow's own dingding provider, which is for chat robots; this needs",
            "ding_talk": "'ding_talk'; this",
            "会议" * 50: "this needs",
        }.items()
    },
    **{
        f"verify {value!r}": ({"extra": {"verify": value}}, "extra 'verify'", "existing file")
        for value in ("/no/such/file", "maybe", 7, ["true"], "a\0b")
    },
    **{
        f"cert {value!r}": ({"extra": {"cert": value}}, "extra 'cert'", "existing certificate file")
        for value in ("/no/such/file", 7, True, ["/no/such/file", "/no/such/file"], ["/"], [1, 2])
    },
    **{
        f"token_cache {value!r}": ({"extra": {"token_cache": value}}, "extra 'token_cache'", "directory")
        for value in ("relative/path", 7, ["/tmp"], "maybe", "/a\0b")
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_error_that_names_the_connection_and_the_field(name: str) -> None:
    fields, field, hint = WRONG[name]
    with pytest.raises(InvalidConnectionError) as caught:
        by_form(**fields)
    message = str(caught.value)
    name = field.removeprefix("extra ").strip("'")
    in_form = CONNECTION_TYPE["conn-fields"].get(name)
    shown = f"{field} ({in_form['label']})" if in_form else field
    assert message.startswith(f"connection 'dingtalk_default', {shown}: ")
    assert hint in message
    assert "hidden" not in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("extra", "hint"), [("hidden", "not JSON"), ('["hidden"]', "JSON list"), ("1", "JSON int")]
)
def test_an_extra_that_is_no_object_is_an_error(extra: str, hint: str) -> None:
    # Airflow's own Connection refuses it, from some version on; a secrets backend may not.
    conn: Any = SimpleNamespace(
        conn_type="dingtalk", login="id", password="the-secret", host="", schema="", port=None, extra=extra
    )
    with pytest.raises(InvalidConnectionError, match=f"^connection 'c', extra: .*{hint}") as caught:
        read_connection(conn, "c")
    assert "hidden" not in str(caught.value)


def test_files_of_certificates_are_taken_as_they_are(certificates: Certificates, tmp_path: Path) -> None:
    pair = list(certificates.client)
    both = tmp_path / "both.pem"
    both.write_text("".join(Path(file).read_text() for file in pair))
    assert by_form(extra={"verify": certificates.authority}).verify == certificates.authority
    assert by_form(extra={"verify": str(tmp_path)}).verify == str(tmp_path)
    assert by_form(extra={"cert": str(both)}).cert == str(both)
    assert by_form(extra={"cert": pair}).cert == tuple(pair)
    assert by_form(extra={"cert": json.dumps(pair)}).cert == tuple(pair)


def test_files_that_hold_no_certificate_are_errors(certificates: Certificates, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    wrong: list[dict[str, Any]] = [
        {"verify": str(empty)},
        {"verify": certificates.client[1]},
        {"cert": str(empty)},
        {"cert": certificates.client[0]},
        {"cert": str(tmp_path)},
        {"cert": [certificates.client[0], certificates.server[1]]},
    ]
    for extra in wrong:
        with pytest.raises(
            InvalidConnectionError, match=f"^connection 'dingtalk_default', extra '{next(iter(extra))}'"
        ):
            by_form(extra=extra)


PEM = f"-----BEGIN PRIVATE KEY-----\n{'hidden' * 1_000}\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize("value", [PEM, PEM[:200], [PEM, PEM], f"/{'hidden/' * 1_000}", "/hidden\ud800"])
@pytest.mark.parametrize("name", ["verify", "cert"])
def test_a_key_in_place_of_its_file_is_shown_to_no_one(name: str, value: Any) -> None:
    with pytest.raises(InvalidConnectionError, match=f"extra {name!r} .*: expected .*existing") as caught:
        by_form(extra={name: value})
    assert "hidden" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", ["verify", "cert"])
def test_a_file_that_may_not_be_looked_at_is_an_error(
    name: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever runs the tests may enter every directory, as root.
    def stat(_path: Path, **_options: Any) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/hidden")

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(InvalidConnectionError, match=f"extra {name!r} .*: Permission denied") as caught:
        by_form(extra={name: certificates.authority})
    assert "hidden" not in str(caught.value)


def test_the_settings_show_no_secret() -> None:
    settings = by_form(
        password="hidden-1",
        extra={"corp_id": "c", "suite_ticket": "hidden-2", "proxies": {"https": "http://u:hidden-3@proxy"}},
    )
    static = by_form(extra={"access_token": "hidden-4"})
    assert "hidden" not in repr(settings) + repr(static)
    assert {f"hidden-{n}" for n in (1, 2, 3, 4)} <= {*settings.secrets, *static.secrets}


@pytest.mark.parametrize(
    "conn",
    [
        Connection(login="id", password="the-secret"),
        Connection(conn_type="", login="id", password="the-secret"),
        Connection(uri="//id:the-secret@"),
        Connection(uri="DingTalk://id:the-secret@"),
        Connection.from_json('{"login": "id", "password": "the-secret"}'),
        Connection.from_json('{"conn_type": "DingTalk", "login": "id", "password": "the-secret"}'),
    ],
)
def test_a_connection_without_a_type_is_taken_as_one_of_dingtalk(conn: Connection) -> None:
    assert read_connection(conn, "dingtalk_default") == PLAIN


def test_a_mistake_keeps_no_secret_among_its_causes() -> None:
    with pytest.raises(InvalidConnectionError) as caught:
        by_form(extra={"access_token": "hidden", "timeout": "hidden"})
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_the_connections_of_the_form_are_those_that_are_read() -> None:
    from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE

    with pytest.raises(InvalidConnectionError) as caught:
        by_form(extra={"qqq": 1})
    known = re.search(r"known are ([a-z_, ]+)", str(caught.value))
    assert known is not None
    assert known[1].split(", ") == sorted(CONNECTION_TYPE["conn-fields"])
