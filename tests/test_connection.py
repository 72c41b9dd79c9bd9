"""The connection: every way to write it down means the same, and every mistake is one clear error."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.models import Connection

from airflow_provider_dingconf.client.proxies import read_proxy
from airflow_provider_dingconf.client.settings import Settings, Timeout, read_connection
from airflow_provider_dingconf.dingtalk.errors import InvalidConnectionError
from airflow_provider_dingconf.dingtalk.tokens import App, Token
from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE

if TYPE_CHECKING:
    from conftest import Certificates

PLAIN = Settings(conn_id="dingtalk_default", base_url="https://api.dingtalk.io", app=App("id", "the-secret"))
LOGIN = {"conn_type": "dingtalk", "login": "id", "password": "the-secret"}
KNOWN = sorted(CONNECTION_TYPE["conn-fields"])


def read(conn: Connection) -> Settings:
    return read_connection(conn, "dingtalk_default")


def by_form(**fields: Any) -> Settings:
    """Read a connection as the UI stores it: its extra is a text."""
    fields = LOGIN | fields
    if isinstance(fields.get("extra"), dict):
        fields["extra"] = json.dumps(fields["extra"])
    return read(Connection(conn_id="dingtalk_default", **fields))


# Each row: the end of a URI, the fields that mean the same, and the settings that are not those of PLAIN.
CN, LOCAL = {"base_url": "https://api.dingtalk.com"}, {"schema": "http", "port": 8790}
SAME: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "empty host": ("id:the-secret@", {}, {}),
    "host": ("id:the-secret@api.dingtalk.com", {"host": "api.dingtalk.com"}, CN),
    "scheme in the host": (
        "https://id:the-secret@api.dingtalk.com",
        {"host": "https://api.dingtalk.com"},
        CN,
    ),
    "scheme as schema": (
        *("id:the-secret@api.dingtalk.com/https", {"host": "api.dingtalk.com", "schema": "https"}),
        CN,
    ),
    "host and port": (
        *("id:the-secret@proxy.example:8443", {"host": "proxy.example", "port": 8443}),
        {"base_url": "https://proxy.example:8443"},
    ),
    "http to loopback": (
        *("http://id:the-secret@127.0.0.1:8790", {"host": "http://127.0.0.1", "port": 8790}),
        {"base_url": "http://127.0.0.1:8790"},
    ),
    "IPv6 address": (
        *("id:the-secret@[::1]:8790/http", {"host": "::1"} | LOCAL),
        {"base_url": "http://[::1]:8790"},
    ),
    "IPv6 address with a scheme": (
        *("https://id:the-secret@[2001:db8::1]", {"host": "https://2001:db8::1"}),
        {"base_url": "https://[2001:db8::1]"},
    ),
    "secrets with every kind of character": (
        *("i%40d:p%2F%3A%40%25%23%3F%2Bs@", {"login": "i@d", "password": "p/:@%#?+s"}),
        {"app": App("i@d", "p/:@%#?+s")},
    ),
    "static token": (
        *("/?access_token=a-token", {"login": None, "password": None, "extra": {"access_token": "a-token"}}),
        {"app": None, "static_token": Token("a-token")},
    ),
}
# Each row: the query of a URI, the extra that means the same, and the settings that are not those of PLAIN.
EXTRAS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "unified": ("corp_id=corp", {"corp_id": "corp"}, {"app": App("id", "the-secret", "corp")}),
    "third party": (
        *("corp_id=corp&suite_ticket=tick%2Bet", {"corp_id": "corp", "suite_ticket": "tick+et"}),
        {"app": App("id", "the-secret", "corp", "tick+et")},
    ),
    "empty extras": ("&".join(f"{name}=" for name in KNOWN), dict.fromkeys(KNOWN, ""), {}),
    "timeout": ("timeout=2.5", {"timeout": 2.5}, {"timeout": Timeout(2.5, 2.5)}),
    "timeouts": ("timeout=%5B3%2C+20%5D", {"timeout": [3, 20]}, {"timeout": Timeout(3, 20)}),
    "proxies": (
        "proxies=%7B%22https%22%3A+%22http%3A%2F%2Fproxy%3A3128%22%7D",
        {"proxies": {"https": "http://proxy:3128"}},
        {"proxies": {"https": read_proxy("http://proxy:3128")}},
    ),
    "proxy without a scheme": (
        "proxies=%7B%22ALL%22%3A+%22u%3Ap%40proxy%3A3128%22%7D",
        {"proxies": {"ALL": "u:p@proxy:3128"}},
        {"proxies": {"all": read_proxy("u:p@proxy:3128")}},
    ),
    "calls per second": ("calls_per_second=0.5", *[{"calls_per_second": 0.5}] * 2),
    "stream silence": ("stream_silence=600", *[{"stream_silence": 600}] * 2),
    "no verification": ("verify=False", *[{"verify": False}] * 2),
    "verification": ("verify=true", {"verify": True}, {}),
    "no sharing of tokens": ("token_cache=no", *[{"token_cache": False}] * 2),
    "sharing of tokens elsewhere": ("token_cache=%2Fvar%2Fcache", *[{"token_cache": "/var/cache"}] * 2),
}
SAME |= {
    name: (f"id:the-secret@/?{query}", {"extra": extra}, changes)
    for name, (query, extra, changes) in EXTRAS.items()
}


@pytest.mark.parametrize(("uri", "fields", "changes"), SAME.values(), ids=SAME)
def test_a_connection_means_the_same_as_a_uri_as_json_and_in_the_form(
    uri: str, fields: dict[str, Any], changes: dict[str, Any]
) -> None:
    settings = PLAIN.model_copy(update=changes)
    assert read(Connection(conn_id="dingtalk_default", uri=f"dingtalk://{uri}")) == settings
    text = json.dumps(LOGIN | fields)
    assert read(Connection.from_json(text, conn_id="dingtalk_default")) == settings
    assert by_form(**fields) == settings
    extra = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in fields.get("extra", {}).items()
    }
    assert by_form(**fields | {"extra": extra}) == settings, "the form's fields are all texts"
    twice = extra | {f"extra__dingtalk__{name}": value for name, value in extra.items()}
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


@pytest.mark.parametrize("kind", [None, "", "DingTalk"])
def test_a_connection_without_a_type_is_taken_as_one_of_dingtalk(kind: str | None) -> None:
    uri = f"{kind}://id:the-secret@" if kind else "//id:the-secret@"
    fields = LOGIN | {"conn_type": kind}
    if kind is None:
        del fields["conn_type"]
    for conn in (Connection(**fields), Connection(uri=uri), Connection.from_json(json.dumps(fields))):
        assert read(conn) == PLAIN


# Mistakes. Each row: the fields, the field that the error names, and a part of the hint. "hidden" marks a secret.

Wrong = tuple[dict[str, Any], str, str]
CLIENT_ID, CLIENT_SECRET = "login (Client ID)", "password (Client Secret)"


def host(hint: str, *hosts: str) -> list[Wrong]:
    return [({"host": each}, "host", hint) for each in hosts]


def extra(name: str, hint: str, *values: Any) -> list[Wrong]:
    return [({"extra": {name: value}}, f"extra {name!r}", hint) for value in values]


def proxy(hint: str, *urls: str) -> list[Wrong]:
    return extra("proxies", hint, *({"https": url} for url in urls))


WRONG: list[Wrong] = [
    ({"login": None}, CLIENT_ID, "missing"),
    ({"login": ""}, CLIENT_ID, "missing"),
    ({"login": None, "password": None}, CLIENT_ID, "access_token"),
    ({"login": "a b"}, CLIENT_ID, "white space"),
    ({"password": None}, CLIENT_SECRET, "missing"),
    ({"password": "hidden\nhidden"}, CLIENT_SECRET, "copied in full"),
    ({"password": "hidden "}, CLIENT_SECRET, "white space"),
    ({"password": "hidden会议"}, CLIENT_SECRET, "ASCII"),
    *extra("access_token", "white", "hidden\r\nX: y"),
    *extra("access_token", "string, got list", ["hidden"]),
    *extra("suite_ticket", "'corp_id'", "hidden"),
    ({"extra": {"corp_id": "c", "suite_ticket": 7}}, "extra 'suite_ticket'", "got int"),
    *extra("corp_id", "corpId", "a/b", ".."),
    (
        {"extra": {"corp_id": "dingcorp", "extra__dingtalk__corp_id": "hidden"}},
        *("extra 'extra__dingtalk__corp_id'", "unknown"),
    ),
    *extra("corpid", "did you mean 'corp_id'?", "hidden"),
    *extra("Access_Token", "'access_token'?", "hidden"),
    *extra("X-Env", f"known are {', '.join(KNOWN)}", "hidden"),
    # The address
    *host("use https", "http://api.dingtalk.io", "http://127.0.0.1.nip.io", "http://localhost.example"),
    *host("use https", "http://0.0.0.0"),
    ({"host": "api.dingtalk.io", "schema": "http"}, "host", "use https"),
    ({"schema": "http"}, "schema", "contradicts"),
    ({"host": "https://localhost", "schema": "http"}, "schema", "contradicts"),
    ({"host": "api.dingtalk.io", "schema": "ftp"}, "schema", "http or https"),
    ({"host": "api.dingtalk.io:1", "port": 2}, "port", "contradicts"),
    *(
        ({"port": port}, "port", "from 1 to 65535")
        for port in (-1, 65536, 70000, 10**6, "https", "\u0663", 44.3, "1 ")
    ),
    *host("login and password", "https://id:hidden@api.dingtalk.io"),
    *host("not a host", "ftp://api.dingtalk.io", "https://api.dingtalk.io/v1.0", "https://", "钉钉.example"),
    *host(
        "not a host", "https://api.dingtalk.io?access_token=hidden", "api.dingtalk.io:x", "api .dingtalk.io"
    ),
    *host("not a host", "api.dingtalk.io:99999", "api.dingtalk.io:0"),
    *host("not a host", "https://oapi.dingtalk.com/robot/send?access_token=hidden"),
    *host("no host can have this name", "a..b", ".a", "a" * 64 + ".com", "a" + ".a" * 127, "256.1.1.1"),
    *host("no host can have this name", "1.2.3", "..", "https://a..b"),
    *host("host", "[a.b]", "[v1.a]", "[1:2]", "::1]", "1:2:3"),
    *host("leave Host empty, or use api.dingtalk.com for mainland", "oapi.dingtalk.com", "help.dingtalk.io"),
    *host("leave Host empty, or use api.dingtalk.com for mainland", "https://open.dingtalk.com/"),
    *host("leave Host empty, or use api.dingtalk.com for mainland", "OAPI.dingtalk.com."),
    # The extra
    *extra("timeout", "seconds", 0, -1, "soon", True, [1], [1, 2, 3], [1, 0], {"read": 1}, "NaN", "inf"),
    *extra("timeout", "seconds", "[1, 2", 86_401, "1e10", [1, 1e300]),
    *extra("stream_silence", "number of seconds above 0 and up to a day", 0, -1, True, "never", 86_401),
    *extra("calls_per_second", "number of calls above 0", 0, -1, True, "many", "inf", "NaN", [18], {"a": 1}),
    *extra("calls_per_second", "number of calls above 0", 10**400),
    *extra("verify", "existing file", "maybe", 7, ["true"], "a\0b"),
    *extra("verify", "existing file or directory: No such file or directory", "/no/such/file"),
    *extra("cert", "existing certificate file", 7, True, ["/no/such/file", "/no/such/file"], ["/"], [1, 2]),
    *extra("token_cache", "directory", "relative/path", 7, ["/tmp"], "maybe", "/a\0b"),
    *extra(
        "proxies", "proxy URLs", "http://proxy:3128", ["http://proxy:3128"], {"https": 1}, {"https": None}
    ),
    *extra("proxies", "proxy URLs", "{", {"htps": "http://proxy:3128"}, {"https://": "http://proxy:3128"}),
    *proxy("URL of an HTTP proxy", "", "http://", "://", "ftp://u:hidden@proxy", "http://[::1", "http://a b"),
    *proxy("URL of an HTTP proxy", "http://proxy:99999", "proxy:0", "http://u:hidden@proxy/path"),
    *proxy("URL of an HTTP proxy", "http://u:hidden@proxy?a=b", "http://u:hidden@"),
    *(
        wrong
        for scheme in ("socks5", "socks5h", "socks4", "SOCKS5")
        for wrong in proxy(
            f"a SOCKS proxy ({scheme.lower()}) cannot be used", f"{scheme}://u:hidden@proxy:1080"
        )
    ),
    *proxy("colon", "http://u%3Ax:hidden@proxy"),
    *proxy("cannot be sent", "http://u:hidden\ud800@proxy"),
    *(
        (
            {"host": "http://127.0.0.1:1", "extra": {"proxies": {key: "http://u:hidden@proxy.example"}}},
            *("extra 'proxies'", "plain http"),
        )
        for key in ("http", "all", "http://127.0.0.1")
    ),
    # The type
    *(
        ({"conn_type": kind}, "conn_type (Connection Type)", hint)
        for kind, hint in {
            "http": "'http'; this needs a connection of type dingtalk",
            "dingding": "Airflow's own dingding provider, which is for chat robots; this needs",
            "ding_talk": "'ding_talk'; this",
            "会议" * 50: "this needs",
        }.items()
    ),
]


@pytest.mark.parametrize(
    ("fields", "field", "hint"), WRONG, ids=[f"{field} of {str(fields)[:60]}" for fields, field, _ in WRONG]
)
def test_a_mistake_is_one_error_that_names_the_connection_and_the_field(
    fields: dict[str, Any], field: str, hint: str
) -> None:
    with pytest.raises(InvalidConnectionError) as caught:
        by_form(**fields)
    message = str(caught.value)
    in_form = CONNECTION_TYPE["conn-fields"].get(field.removeprefix("extra ").strip("'"))
    shown = f"{field} ({in_form['label']})" if in_form else field
    assert message.startswith(f"connection 'dingtalk_default', {shown}: ")
    assert hint in message
    assert "hidden" not in message
    assert message.isprintable()
    assert (caught.value.__cause__, caught.value.__context__) == (None, None), "they would hold the secret"


@pytest.mark.parametrize(
    ("extra", "hint"),
    [
        ("hidden", "not JSON"),
        ('["hidden"]', "JSON list"),
        ("1", "JSON int"),
        (1, "int"),
        (["hidden"], "list"),
    ],
)
def test_an_extra_that_is_no_object_is_an_error(extra: Any, hint: str) -> None:
    # Airflow's own Connection refuses it, from some version on; a secrets backend may not.
    conn: Any = SimpleNamespace(**LOGIN, host="", schema="", port=None, extra=extra)
    with pytest.raises(InvalidConnectionError, match=f"^connection 'c', extra: .*{hint}") as caught:
        read_connection(conn, "c")
    assert "hidden" not in str(caught.value)


def test_an_extra_that_a_secrets_backend_gives_as_a_dict_is_read() -> None:
    # Airflow 3's own Connection keeps it as it is.
    extra = {"corp_id": "c", "timeout": [1, 2]}
    conn: Any = SimpleNamespace(**LOGIN, host="", schema="", port=None, extra=extra)
    settings = read_connection(conn, "c")
    assert (settings.app, settings.timeout) == (App("id", "the-secret", "c"), Timeout(1, 2))
    assert extra == {"corp_id": "c", "timeout": [1, 2]}


@pytest.mark.parametrize("field", ["conn_type", "host", "schema", "login", "password"])
@pytest.mark.parametrize("value", [5, ["hidden"], {"hidden": 1}, b"hidden"])
def test_a_field_that_a_secrets_backend_gives_as_no_string_is_an_error(field: str, value: Any) -> None:
    fields = LOGIN | {"host": "", "schema": "", "port": None, "extra": ""} | {field: value}
    conn: Any = SimpleNamespace(**fields)
    kind = type(value).__name__
    with pytest.raises(
        InvalidConnectionError, match=f"^connection 'c', {field}.*: expected a string, got {kind}"
    ) as caught:
        read_connection(conn, "c")
    assert "hidden" not in str(caught.value)


# Files of certificates


def test_files_that_hold_no_certificate_are_errors(certificates: Certificates, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    certificate, key = certificates.client
    files: list[tuple[str, Any]] = [("verify", str(empty)), ("verify", key), ("cert", str(empty))]
    files += [("cert", certificate), ("cert", str(tmp_path)), ("cert", [certificate, certificates.server[1]])]
    for name, value in files:
        with pytest.raises(InvalidConnectionError, match=f"^connection 'dingtalk_default', extra '{name}'"):
            by_form(extra={name: value})


PEM = f"-----BEGIN PRIVATE KEY-----\n{'hidden' * 1_000}\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize("value", [PEM, PEM[:200], [PEM, PEM], f"/{'hidden/' * 1_000}", "/hidden\ud800"])
@pytest.mark.parametrize("name", ["verify", "cert"])
def test_a_key_in_place_of_its_file_is_shown_to_no_one(name: str, value: Any) -> None:
    with pytest.raises(InvalidConnectionError, match=f"extra {name!r} .*: expected .*existing") as caught:
        by_form(extra={name: value})
    assert "hidden" not in "".join(traceback.format_exception(caught.value))


def test_the_settings_show_no_secret() -> None:
    settings = by_form(
        password="hidden-1",
        extra={"corp_id": "c", "suite_ticket": "hidden-2", "proxies": {"https": "http://u:hidden-3@proxy"}},
    )
    static = by_form(extra={"access_token": "hidden-4"})
    assert "hidden" not in repr(settings) + repr(static)
    assert {f"hidden-{n}" for n in (1, 2, 3, 4)} <= {*settings.secrets, *static.secrets}
