"""Errors as values: what they say, and that they survive between processes."""

from __future__ import annotations

import json
import pickle

import pytest

from airflow_provider_dingconf.dingtalk import errors
from airflow_provider_dingconf.dingtalk.error_codes import ERRORS, ErrorCode, find_code
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, Outcome, Scope, error_classes

CLASSES = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DingTalkError)
]


def test_the_tree_of_the_module_and_on_error_name_every_class() -> None:
    drawn = [
        line.strip("│├└─ ").split()[0] for line in (errors.__doc__ or "").splitlines() if "Error" in line
    ]
    assert {kind.__name__ for kind in CLASSES} <= set(drawn)
    assert {kind.__name__ for kind in CLASSES} <= set(error_classes())


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_pickling_and_the_database_with_all_its_facts(kind: type[DingTalkError]) -> None:
    error = kind("said", code="x", http_status=500, request_id="R-1", retry_after=7.0)
    error.attempts = 3
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(copy) is kind
    assert (str(copy), vars(copy)) == (str(error), vars(error))
    stored = DingTalkError.from_dict(json.loads(json.dumps(error.as_dict())))
    assert type(stored) is kind
    assert str(stored) == str(error)


def test_an_error_says_what_happened_what_it_means_and_what_can_help() -> None:
    throttled = errors.ThrottledError("x", code="90018", http_status=400, request_id="R-1", retry_after=2.5)
    row = ERRORS["90018"]
    facts = "90018: x (HTTP 400, request id R-1, retry after 2.5 s)"
    assert str(throttled) == f"{facts}. {row.meaning} {row.remedy}"
    assert str(errors.InvalidInputError("x: wrong")) == "x: wrong. Nothing was sent to DingTalk."
    assert str(errors.InvalidInputError("x: really?")) == "x: really? Nothing was sent to DingTalk."
    # DingTalk's support is named for its own faults, and only with a request id to give.
    support = "If it lasts, give the request id to DingTalk's support."
    assert str(errors.ServerError("x", code="systemError", request_id="R-1")).endswith(support)
    assert "support" not in str(errors.ServerError("x", code="systemError"))
    # A code that means something else here has the words of its class.
    refused = errors.CredentialsError("x", code="unknownError", http_status=500)
    assert ERRORS["unknownError"].meaning not in str(refused)
    assert refused.scope is Scope.APP


@pytest.mark.parametrize("row", ERRORS.values(), ids=list(ERRORS))
def test_every_row_of_the_table_says_what_it_means_and_what_can_help(row: ErrorCode) -> None:
    assert row.meaning.endswith(".")
    assert row.remedy.endswith(".")
    assert row.outcome is row.error.outcome
    assert all(100 <= status <= 599 for status in row.http_status)
    for advice in ("on_error", "Let Airflow", "request id", "it is neither"):
        assert advice not in row.meaning + row.remedy, "it may be followed already, or not apply"


@pytest.mark.parametrize(
    ("error", "scope"),
    [
        (errors.ServerError("x", code="systemError"), Scope.MEETING),
        (errors.ThrottledError("x", code="90018"), Scope.APP),
        (errors.PermissionDeniedError("x", code="noPermission"), Scope.MEETING),
        (errors.PermissionDeniedError("x", http_status=403), Scope.MEETING),
        (errors.PermissionDeniedError("x", code="60011"), Scope.APP),
        (errors.PermissionDeniedError("x", code="Forbidden.AccessDenied.IpNotInWhiteList"), Scope.APP),
        (errors.PermissionDeniedError("x", code="orgAccessForbidden"), Scope.ORGANISATION),
        (errors.QuotaExhaustedError("x"), Scope.ORGANISATION),
        (errors.CredentialsError("x"), Scope.APP),
        (errors.AccessTokenError("x", code="paramsError", http_status=401), Scope.APP),
        (errors.AddressBannedError("x", code="addressBanned"), Scope.ADDRESS),
        (errors.CertificateError("x", code="badCertificate"), Scope.APP),
        (errors.RedirectError("x", code="redirect"), Scope.APP),
        (errors.InvalidConferenceIdError("x"), Scope.MEETING),
    ],
)
def test_an_error_says_what_else_it_concerns(error: DingTalkError, scope: Scope) -> None:
    assert error.scope is scope
    assert error.concerns_all is (scope is not Scope.MEETING)


def test_a_code_of_a_known_family_is_treated_as_its_family() -> None:
    begins = "Forbidden.AccessDenied."
    for code, row in {"QpsLimitForX": "QpsLimitForApi", "QpmLimitForX": "QpmLimitForAppkeyAndApi"}.items():
        assert find_code(begins + code) is ERRORS[begins + row]
    for code in (None, "", begins, begins + "X", "qpsLimitForApi"):
        assert find_code(code) is None


def test_the_default_outcomes_are_the_promised_ones() -> None:
    codes = {
        Outcome.SKIP: "confClosed",
        Outcome.FAIL: """
            paramsError commandError noPermission InvalidAuthentication invalidClientIdOrSecret badCertificate
            Forbidden.AccessDenied.AccessTokenPermissionDenied Forbidden.AccessDenied.IpNotInWhiteList redirect
            90020 404 40014 60011 Forbidden.AccessDenied.ApiCountLimitForOrg invalidScheduleConferenceId
            AuthenticationFailed.MissingParameter""",
        Outcome.RETRY: """
            systemError serviceBusy internalError system.busy systemBusy 90002 90018 90019 qps.exceed.limit
            Forbidden.AccessDenied.QpsLimitForApi Forbidden.AccessDenied.QpmLimitForSuitekeyAndOrgAndApi
            oaplus.query.limit unknownError addressBanned unreadableAnswer notConfirmed connectionLost timeout""",
    }
    for outcome, listed in codes.items():
        assert {code: ERRORS[code].outcome for code in listed.split()} == dict.fromkeys(
            listed.split(), outcome
        )
