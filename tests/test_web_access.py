"""Who may use a web service of unary's."""

import logging
import os

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from web import WebClient

from unary.clinic.web_access import COOKIE, Access, Guard, build_access, read_token
from unary.errors import UnaryError

TOKEN = "a-token-of-more-than-twenty-letters"
HOST = "http://127.0.0.1:8000"
OURS = {"x-unary": "1", "origin": HOST}


def build_client(access, *, opened=(), mount="", base_url=HOST):
    def fail(_):
        raise RuntimeError("Canary^Patient")

    routes = [
        Route("/", lambda _: PlainTextResponse("inside")),
        Route("/health", lambda _: PlainTextResponse("well")),
        Route("/write", lambda _: PlainTextResponse("written"), methods=["POST"]),
        Route("/fail", fail),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(Guard, access=access, opened=opened)])
    return WebClient(Starlette(routes=[Mount(mount, app)]) if mount else app, base_url=base_url)


@pytest.fixture
def local():
    return build_client(build_access("127.0.0.1"))


@pytest.fixture
def remote():
    return build_client(Access(frozenset({"127.0.0.1"}), TOKEN), opened=("/health",))


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"])
def test_loopback_is_asked_for_by_its_own_names(local, host):
    assert local.get("/", headers={"host": host}).text == "inside"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "user@127.0.0.1", "127.0.0.1:80:80", "", "127.0.0.1/..", "a b"]
)
def test_any_other_name_is_refused(local, host):
    answer = local.get("/", headers={"host": host})
    assert answer.status_code == 421
    assert "inside" not in answer.text


def test_every_answer_forbids_what_is_not_ours(local):
    for path in ("/", "/nothing", "/fail"):
        headers = local.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": HOST},
        {"x-unary": "1", "origin": "http://evil.example"},
        {"x-unary": "1", "origin": "null"},
        {"x-unary": "1", "origin": "http://127.0.0.1:9999"},
        {"x-unary": "1", "sec-fetch-site": "cross-site"},
        {"x-unary": "1", "sec-fetch-site": "same-site"},
    ],
)
def test_a_change_from_elsewhere_is_refused(local, headers):
    assert local.post("/write", headers=headers).status_code == 403
    assert local.post("/write", headers=OURS).text == "written"


def test_without_the_token_nobody_comes_in(remote):
    assert remote.get("/health").text == "well"
    assert remote.get("/").status_code == 401
    assert remote.post("/write", headers=OURS).status_code == 401
    page = remote.get("/", headers={"accept": "text/html"}, follow_redirects=False)
    assert (page.status_code, page.headers["location"]) == (303, "/login")
    for wrong in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer ", TOKEN, "Bearer tökén"):
        shown = wrong.encode("utf-8")
        assert remote.get("/", headers={"authorization": shown}).status_code == 401
    assert remote.get("/", headers={"authorization": f"Bearer {TOKEN}"}).text == "inside"
    assert remote.post("/write", headers={"authorization": f"Bearer {TOKEN}"}).text == "written"


def test_the_token_is_exchanged_for_a_cookie_that_scripts_and_other_sites_do_not_get(remote):
    wrong = remote.post("/login", data={"token": "wrong"}, headers={"origin": HOST})
    assert wrong.status_code == 401
    assert "set-cookie" not in wrong.headers
    assert remote.post("/login", data={"token": TOKEN}, headers={"origin": "http://evil.example"}).status_code == 403
    right = remote.post("/login", data={"token": TOKEN}, headers={"origin": HOST}, follow_redirects=False)
    cookie = right.headers["set-cookie"].lower()
    assert right.headers["location"] == "/"
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in right.headers["set-cookie"]
    assert remote.get("/").text == "inside"
    assert remote.post("/write", headers={"origin": HOST}).status_code == 403, "a cookie alone changes nothing"
    assert remote.post("/write", headers=OURS).text == "written"
    remote.post("/logout", headers=OURS)
    assert remote.get("/").status_code == 401


def test_a_cookie_that_is_forged_or_old_is_worth_nothing(remote, monkeypatch):
    answer = remote.post("/login", data={"token": TOKEN}, headers={"origin": HOST}, follow_redirects=False)
    until, signature = answer.cookies[COOKIE].split(".")
    remote.cookies.clear()
    for forged in (f"{int(until) + 1}.{signature}", f"{until}.{signature[:-1]}", f"{until}.", "", f"-1.{signature}"):
        assert remote.get("/", headers={"cookie": f"{COOKIE}={forged}"}).status_code == 401
    assert remote.get("/", headers={"cookie": f"{COOKIE}={until}.{signature}"}).status_code == 200
    monkeypatch.setattr("unary.clinic.web_access.time.time", lambda: int(until) + 1)
    assert remote.get("/", headers={"cookie": f"{COOKIE}={until}.{signature}"}).status_code == 401


def test_a_cookie_travels_over_tls_alone_where_there_is_tls():
    client = build_client(Access(frozenset({"127.0.0.1"}), TOKEN, secure=True), base_url="https://127.0.0.1")
    answer = client.post(
        "/login", data={"token": TOKEN}, headers={"origin": "https://127.0.0.1"}, follow_redirects=False
    )
    assert "secure" in answer.headers["set-cookie"].lower()


def test_below_a_mount_the_pages_are_those_of_the_mount():
    client = build_client(Access(frozenset({"127.0.0.1"}), TOKEN), mount="/review")
    page = client.get("/review/", headers={"accept": "text/html"})
    assert 'action="/review/login"' in page.text
    assert client.get("/review/%2e%2e/health").status_code in (401, 404)
    assert client.post("/review/login", data={"token": TOKEN}, headers={"origin": HOST}).text == "inside"


def test_a_login_form_of_any_size_does_not_fill_the_memory(remote):
    answer = remote.post("/login", content=b"token=" + b"x" * 100_000, headers={"origin": HOST})
    assert answer.status_code == 400
    assert "set-cookie" not in answer.headers


def test_an_error_says_nothing_of_its_text(local, caplog):
    with caplog.at_level(logging.DEBUG):
        answer = local.get("/fail")
    assert answer.status_code == 500
    assert "RuntimeError" in caplog.text
    assert "Canary" not in answer.text + caplog.text


def test_what_other_machines_reach_needs_a_token_and_tls():
    for refused in ({}, {"token": TOKEN}, {"tls": True}, {"plain_http": True}, {"token": "short", "tls": True}):
        with pytest.raises(UnaryError):
            build_access("192.0.2.1", **refused)
    assert build_access("192.0.2.1", token=TOKEN, tls=True) == Access(frozenset({"192.0.2.1"}), TOKEN, secure=True)
    assert not build_access("192.0.2.1", token=TOKEN, plain_http=True).secure
    with pytest.raises(UnaryError, match="name"):
        build_access("0.0.0.0", token=TOKEN, tls=True)
    named = build_access("0.0.0.0", token=TOKEN, tls=True, names=["Review.Hospital"])
    assert named.hosts == {"review.hospital"}
    assert TOKEN not in repr(named)


def test_a_token_file_is_made_once_and_is_its_owner_s_alone(tmp_path, monkeypatch):
    path = tmp_path / "token"
    first = read_token(path, "UNARY_TEST_TOKEN")
    assert len(first) >= 40
    assert path.stat().st_mode & 0o077 == 0
    assert read_token(path, "UNARY_TEST_TOKEN") == first
    os.chmod(path, 0o644)
    with pytest.raises(UnaryError, match="others can read"):
        read_token(path, "UNARY_TEST_TOKEN")
    monkeypatch.setenv("UNARY_TEST_TOKEN", TOKEN)
    assert read_token(None, "UNARY_TEST_TOKEN") == TOKEN


def test_a_token_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "token"
    path.write_bytes(b"\xff\xfe\xff")
    path.chmod(0o600)
    with pytest.raises(UnaryError, match=r"token: the token cannot be read \(no text\)"):
        read_token(path, "NONE")
