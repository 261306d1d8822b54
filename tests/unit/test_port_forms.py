"""Multipart forms of the port against Werkzeug's parser."""

from io import BytesIO

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header
from werkzeug.test import encode_multipart

from fastapi_app.forms import FormTooLarge, parse_multipart

TYPE = "multipart/form-data; boundary=b"
Found = tuple[list[tuple[str, str]], list[tuple[str, str, bytes]]]


def werkzeug(body: bytes, content_type: str = TYPE) -> Found:
    kind, options = parse_options_header(content_type)
    parser = FormDataParser(lambda **_: BytesIO(), max_form_memory_size=500_000, max_form_parts=1000)
    _, form, files = parser.parse(BytesIO(body), kind, len(body), options)
    found = [(name, file.filename or "", file.read()) for name, file in files.items(multi=True)]
    return list(form.items(multi=True)), found


def port(body: bytes, content_type: str = TYPE) -> Found:
    parts = parse_multipart(body, content_type)
    texts = [(part.name, part.text) for part in parts if part.filename is None]
    files = [(part.name, part.filename, part.content) for part in parts if part.filename is not None]
    return sorted_by_name(texts), sorted_by_name(files)


def sorted_by_name(items: list) -> list:  # type: ignore[type-arg]
    """As a multi-dict gives them: grouped by the name that came first."""
    names = list(dict.fromkeys(item[0] for item in items))
    return sorted(items, key=lambda item: names.index(item[0]))


PIECES = st.sampled_from(
    ["--b", "--b--", "\r\n", "\n", "\r", "--", "b", " ", "x", "\x00é", "a=1", ":",
     'Content-Disposition: form-data; name="a"\r\n', 'content-disposition:form-data;name=b;filename="f.txt"\n',
     'Content-Disposition: form-data; name="c"; filename=""\r\n', "Content-Type: text/plain; charset=iso-8859-1\r\n",
     "--b\r\nContent-Disposition: form-data; name=d\r\n\r\nvalue", "\r\n--b--\r\n"]
)  # fmt: skip


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PIECES, max_size=14).map("".join))
@example('--b\r\nContent-Disposition: form-data; name="a"; filename="x"\r\n\r\n--b--\r\n')
@example('--b\nContent-Disposition: form-data; name="a"\n\n1\n--b--')
@example(
    "--b\r\nContent-Disposition: form-data; name=b; filename=f\r\nContent-Disposition: form-data; name=a\r\n\r\n--b--"
)
def test_any_body_is_read_as_werkzeug_reads_it(text: str) -> None:
    body = text.encode()
    assert werkzeug(body) == port(body)


@pytest.mark.parametrize("content", [b"", b"x", b"\r\n", b"\r\n--b", b"--b--", bytes(range(256)) * 500, b"\n" * 70_000])
def test_what_an_encoder_wraps_comes_out_again(content: bytes) -> None:
    file = FileStorage(BytesIO(content), "n.bin", content_type="application/octet-stream")
    _, body = encode_multipart({"first": "1", "file": file}, boundary="limit")
    kind = "multipart/form-data; boundary=limit"
    assert ([("first", "1")], [("file", "n.bin", content)]) == werkzeug(body, kind) == port(body, kind)


@pytest.mark.parametrize(
    "disposition",
    [
        "form-data; name=\"a\"; filename*=UTF-8''Bj%C3%B6rk.png",
        'form-data; name=a; filename="Björk.png"',
        'form-data; name="a"; filename="C:\\\\dir\\\\x.png"',
        'form-data; filename="x;y.png"; name="a"',
        'FORM-DATA; NAME="a"; FILENAME=x',
    ],
)
def test_ways_to_name_a_file(disposition: str) -> None:
    body = f"--b\r\nContent-Disposition: {disposition}\r\n\r\nx\r\n--b--\r\n".encode()
    expected, found = werkzeug(body), port(body)
    assert expected[0] == found[0]
    assert [(name, content) for name, _, content in expected[1]] == [(name, content) for name, _, content in found[1]]


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary="b"; charset=x',
        TYPE + " ",
    ],
)
def test_the_boundary_is_where_werkzeug_finds_it(content_type: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b--\r\n'
    assert werkzeug(body, content_type) == port(body, content_type)


def field(content: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + content + b"\r\n"


@pytest.mark.parametrize("body", [field(b"x" * 500_001) + b"--b--", field(b"") * 1001 + b"--b--"])
def test_a_form_beyond_the_limits_is_refused_on_both_sides(body: bytes) -> None:
    with pytest.raises(RequestEntityTooLarge):
        werkzeug(body)
    with pytest.raises(FormTooLarge):
        port(body)
