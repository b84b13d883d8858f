"""`docs/api.md` has a row for every field, key, member, endpoint and error code, and no other.

Rows are the lines of a section's tables that begin with a word in backquotes.
"""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields

import pytest

from litevl import errors
from litevl.api.fields import Reader
from litevl.api.openapi import openapi_document
from litevl.api.protocol import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    COMPLETION_UNSUPPORTED,
    STREAM_FIELDS,
    UNSUPPORTED,
)
from litevl.api.sampling import SAMPLING_FIELDS
from litevl.sequence import MediaOptions
from live import ROOT

TEXT = (ROOT / "docs" / "api.md").read_text("utf-8")
FIELDS: Mapping[str, Reader] = {**CHAT_FIELDS, **SAMPLING_FIELDS, **STREAM_FIELDS}
ENDPOINTS = {
    f"{method.upper()} {path}"
    for path, item in openapi_document(asks_for_key=True)["paths"].items()  # type: ignore[attr-defined]
    for method in item
}


def rows(section: str) -> dict[str, str]:
    """First word -> the rest of the row, of every table of a section."""
    found = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found, section
    return dict(re.findall(r"^\| `([^`]+)` \|(.*)$", found[1], re.MULTILINE))


def test_every_endpoint_has_its_row() -> None:
    assert set(rows("Endpoints")) == ENDPOINTS


def test_every_chat_field_has_its_row() -> None:
    assert set(rows("A chat request")) == {"messages", *FIELDS, *UNSUPPORTED}


def test_every_field_of_text_completions_has_its_row() -> None:
    told = set(rows("Text completions"))
    shared = {"response_format", "structured_outputs"}  # told in the line above the table
    assert told == ({*COMPLETION_FIELDS, *COMPLETION_UNSUPPORTED} - shared) | {"max_tokens"}


def test_every_key_of_media_has_its_row() -> None:
    assert set(rows("Keys of media")) == {each.name for each in fields(MediaOptions)}


def test_every_member_of_a_receipt_has_its_row() -> None:
    schemas = openapi_document(asks_for_key=True)["components"]["schemas"]  # type: ignore[index]
    assert set(rows("The receipt")) == set(schemas["MediaReceipt"]["properties"])


@pytest.mark.parametrize("name", FIELDS)
def test_a_row_tells_the_limits_of_its_field(name: str) -> None:
    """All but those that are only there to keep numbers within 64 bits."""
    schema = FIELDS[name].schema
    names = ("minimum", "maximum", "exclusiveMinimum", "maxItems", "maxProperties")
    limits = [value for key in names if isinstance(value := schema.get(key), int | float)]
    row = rows("A chat request")[name]
    told = set(re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", row))
    assert {f"{limit:g}" for limit in limits if abs(limit) < 2**30} <= told


# Error codes -----------------------------------------------------------------------------------


def own_codes() -> set[str]:
    """The codes of the classes in `errors.py`."""
    return {
        each.code
        for _, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, errors.LitevlError)
    }


def strings(node: ast.expr) -> Iterator[str]:
    """What an expression can be: with a picture and with a clip in its gaps."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        for kind in ("image", "video"):
            parts = (str(e.value) if isinstance(e, ast.Constant) else kind for e in node.values)
            yield "".join(parts)


def media_codes() -> set[str]:
    """The codes that `litevl/media` raises errors with: `code=...`, and `fault` of `Item.error`."""
    found: set[str] = set()
    for path in (ROOT / "litevl" / "media").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            named = {each.arg: each.value for each in node.keywords}
            if "code" in named:
                found |= set(strings(named["code"]))
            if isinstance(node.func, ast.Attribute) and node.func.attr == "error":
                faults = {each for argument in node.args[1:] for each in strings(argument)}
                found |= {f"{kind}_{fault}" for kind in ("image", "video") for fault in faults}
    return found - {"image_image", "video_video"}  # kind and fault, both filled with the kind


def test_every_error_code_has_its_row() -> None:
    known = own_codes() | media_codes() | {"image_too_small"}  # its fault is chosen by an `if`
    assert set(rows("Errors")) == known - {"image_too_long"}  # only clips are


def test_every_row_of_the_errors_tells_a_status_of_its_code() -> None:
    status = {each.code: each.status for each in vars(errors).values() if hasattr(each, "status")}
    told = {code: int(row.split("|")[0]) for code, row in rows("Errors").items()}
    assert {code: told[code] for code in status} == status
