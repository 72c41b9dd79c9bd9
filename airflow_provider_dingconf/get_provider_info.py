"""``get_provider_info``: the provider's modules, links and guides, and its connection form, for Airflow.

Airflow 3.2 and later read the form from here, without importing the hook. For older versions, the hook's
methods make the same form from the same data.
"""

from __future__ import annotations

from typing import Any

from airflow_provider_dingconf import __version__

_PACKAGE = "airflow_provider_dingconf"
_INTEGRATION = "DingTalk video meetings"
_GUIDES = """
    create-the-dingtalk-app set-up-the-connection find-a-meeting lock-a-section lock-and-unlock-separately
    lock-many-meetings wait-then-lock start-a-dag-when-a-meeting-starts create-a-meeting list-attendance
    make-any-call retries unlock-by-hand test-with-the-sandbox metrics troubleshooting
""".split()  # noqa: SIM905 - as a list, it is 16 lines


def _field(label: str, description: str, **schema: str) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": ["string", "null"], **schema}}


_STANDARD_FIELDS = (
    ("host", "Host", "https://api.dingtalk.io, or api.dingtalk.com for mainland China"),
    ("login", "Client ID", "Client ID of the app (AppKey, SuiteKey)"),
    ("password", "Client Secret", "Client Secret of the app (AppSecret, SuiteSecret)"),
    ("port", None, "443 when empty; Airflow 3.3.1 and 3.3.2 test only with a port"),
)
"""Airflow's own fields: the name, another label, and the placeholder."""

CONNECTION_TYPE: dict[str, Any] = {
    "connection-type": "dingtalk",
    "hook-name": "DingTalk",
    "hook-class-name": f"{_PACKAGE}.hooks.DingTalkConferenceHook",
    "ui-field-behaviour": {
        # The port stays: Airflow 3.3.1 and 3.3.2 refuse to test a connection that has none.
        "hidden-fields": ["schema", "extra"],
        "relabeling": {name: label for name, label, _ in _STANDARD_FIELDS if label},
        "placeholders": {name: shown for name, _, shown in _STANDARD_FIELDS},
    },
    "conn-fields": {
        "corp_id": _field(
            "Organisation (corpId)",
            "The organisation the app acts for. Leave it empty for an internal app of one organisation.",
        ),
        "suite_ticket": _field(
            "Suite ticket",
            "For a third-party app without the unified token call: the newest ticket DingTalk pushed.",
            format="password",
        ),
        "access_token": _field(
            "Access token",
            "A token from elsewhere, used as it is in place of Client ID and Client Secret. "
            "It is not renewed.",
            format="password",
        ),
        "timeout": _field(
            "Timeout",
            "Seconds to wait for DingTalk, or [connect, read]. Empty: 5 to connect, 10 to read.",
        ),
        "calls_per_second": _field(
            "Calls per second",
            "The rate limit for many meetings and waiting sensors. Empty: 18, since a standard organisation "
            "has 20 for each app and API.",
        ),
        "stream_silence": _field(
            "Event stream silence",
            "Seconds without a message after which the event stream is opened anew. 1800 when empty.",
        ),
        "proxies": _field("Proxies", 'Proxy URLs by scheme, as JSON: {"https": "http://proxy.example:3128"}'),
        "verify": _field(
            "Verify certificates",
            "true, false, or a file or directory of the certificate authorities to trust. True when empty.",
        ),
        "cert": _field("Client certificate", "A certificate file, or [certificate, key]."),
        "token_cache": _field(
            "Token cache",
            "true, false, or the directory of the encrypted files through which the processes of a host "
            "share the access token. True when empty.",
        ),
    },
}


def _modules(*names: str) -> list[dict[str, Any]]:
    return [{"integration-name": _INTEGRATION, "python-modules": [f"{_PACKAGE}.{name}" for name in names]}]


def get_provider_info() -> dict[str, Any]:
    """Return the provider's description, by the schema of Airflow's ``provider_info``."""
    return {
        "package-name": "airflow-provider-dingconf",
        "name": "DingTalk meetings",
        "description": "Lock and unlock DingTalk video meetings.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://help.dingtalk.io/open/development/api-lockconference",
                "how-to-guide": [f"/docs/how-to/{guide}.md" for guide in _GUIDES],
                "tags": ["service"],
            }
        ],
        "hooks": _modules("hooks"),
        "operators": _modules("operators", "lock_operators", "meeting_operators"),
        "sensors": _modules("sensors"),
        "triggers": _modules("triggers"),
        "notifications": [f"{_PACKAGE}.notifications.UnlockConferenceNotifier"],
        "connection-types": [CONNECTION_TYPE],
        "extra-links": [
            f"{_PACKAGE}.links.CallDocumentationLink",
            f"{_PACKAGE}.links.ErrorDocumentationLink",
            f"{_PACKAGE}.links.JoinConferenceLink",
        ],
    }
