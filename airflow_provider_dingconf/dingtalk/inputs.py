"""Checks of a user's input, which raise an InvalidInputError, and how a message shows a value."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from airflow_provider_dingconf.dingtalk.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Collection

# RFC 3986's characters of a path segment, less "%": they go over the wire unchanged.
SEGMENT_CHAR = r"[A-Za-z0-9\-._~!$&'()*+,;=:@]"
MOST_HINTED = 20  # known names that a message lists

plain = str.__str__
"""Returns the text itself of a subclass of ``str``: a member of an enum would be sent by its name."""


def check_text(name: str, value: object, error: type[InvalidInputError] = InvalidInputError) -> str:
    """Return a text that a template may have rendered, as a plain ``str``.

    :param name: the parameter that has the value.
    :raises InvalidInputError: the value is not a string, or is what a template without a value renders to.
    """
    if isinstance(value, str) and value.strip() not in ("", "None"):
        return plain(value)
    if value is not None and not isinstance(value, str):
        remedy = "if it comes from a template, render_template_as_native_obj=True is the likely cause; "
        remedy += "quotes in the template keep a string: \"'{{ ... }}'\""
        if isinstance(value, (list, tuple, set)):
            remedy = "give one, not a list"
        raise error(f"{name}: expected a string, got {shown(value)} of type {type(value).__name__}; {remedy}")
    problem = f"it is {value!r}" if value is None or value.strip() else "it is empty"
    raise error(
        f"{name}: {problem}, as a template or XCom without a value renders; check where it comes from"
    )


def check_switch(name: str, value: object) -> None:
    """Check that a value is a boolean: the text "False" would count as true."""
    if not isinstance(value, bool):
        raise InvalidInputError(f"{name}: {shown(value)} is not True or False; it is not a template")


def digits_of(value: object) -> object:
    """Return an int as its digits: native rendering makes ints of them. Return any other value unchanged."""
    return str(value) if type(value) is int and 0 <= value < 10**18 else value


def hint(name: object, known: Collection[str]) -> str:
    """Return what a message says after an unknown name: the nearest known name, or else all of a few."""
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {by_lower[near[0]]!r}?"
    return f"; known are {', '.join(known)}" if len(known) <= MOST_HINTED else ""


def shown(value: object) -> str:
    """Return a short text of a value, in ASCII, for a message."""
    try:
        text = ascii(value)
    except Exception:  # an int of thousands of digits, a deep list, an object that cannot be shown
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
