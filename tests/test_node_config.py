"""NODE.toml: what is taken, and that every mistake is named with file, table and field."""

import dataclasses
import re
from pathlib import Path

import pytest

from unary.clinic.node.config import (
    Caller,
    Destination,
    DimseListener,
    Limits,
    NodeConfig,
    Sending,
    Watch,
    WebListener,
    read_config,
    read_secret,
)
from unary.clinic.node.service import check_config
from unary.errors import UnaryError
from unary.models.fitting import FitConfig, fit

GOOD = """
model = "model"
state = "/var/lib/unary"
operating_point = "0.5"
accept = ["IMPLANT"]

[dimse]
port = 11112

[[dimse.callers]]
title = "MODALITY"
addresses = ["10.1.0.0/16", "::1"]
commitment_port = 104

[web]
port = 8080

[limits]
queue = 500

[destinations.pacs]
dimse = "PACS@[::1]:104"
kinds = ["report"]

[destinations.archive]
web = "https://archive.hospital/dicom-web"
token_variable = "ARCHIVE_TOKEN"
"""


def write(folder, text):
    path = folder / "NODE.toml"
    path.write_text(text)
    return path


def test_a_whole_configuration_is_read(tmp_path, monkeypatch):
    config = read_config(write(tmp_path, GOOD))
    assert config.model == tmp_path / "model"
    assert (config.operating_point, config.accept, config.limits.queue) == ("0.5", ("IMPLANT",), 500)
    assert config.dimse.host == config.web.host == "127.0.0.1"
    (caller,) = config.dimse.callers
    assert caller.may_call_from("10.1.2.3")
    assert caller.may_call_from("::ffff:10.1.2.3")
    assert caller.may_call_from("::1")
    assert not caller.may_call_from("10.2.0.1")
    pacs, archive = config.destinations
    assert (pacs.name, pacs.wants("report"), pacs.wants("capture")) == ("pacs", True, False)
    assert pacs.build_address().host == "::1"
    monkeypatch.setenv("ARCHIVE_TOKEN", "secret")
    assert archive.build_address().token == "secret"
    assert "secret" not in repr(archive.build_address())
    assert archive.wants("capture")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("port = 11112", 'port = "x"'), "table [dimse]: field 'port'"),
        (("port = 11112", "port = 99999"), "table [dimse]: port must lie between 0 and 65535"),
        (("port = 11112", ""), "table [dimse]: the field 'port' is missing"),
        (("port = 11112", "prot = 1"), "table [dimse]: unknown field 'prot'"),
        (("port = 11112", 'port = 1\nhost = "0.0.0.0"'), "table [dimse]: host '0.0.0.0' is not loopback"),
        (("port = 11112", 'port = 1\nkey = "k"'), "table [dimse]: TLS needs both"),
        (
            ("port = 8080", 'port = 1\nhost = "0.0.0.0"'),
            "table [web]: host '0.0.0.0' is not loopback and there is no tok",
        ),
        (
            ("port = 8080", 'port = 1\nhost = "10.0.0.1"\ntoken_file = "t"'),
            "table [web]: host '10.0.0.1' is not loopback and there is no TLS",
        ),
        (('title = "MODALITY"', 'title = "FAR_TOO_LONG_A_TITLE"'), "table [dimse.callers, 1]: title must have"),
        (('"10.1.0.0/16"', '"ten"'), "table [dimse.callers, 1]: 'ten' does not appear to be"),
        (("queue = 500", "queue = 0"), "table [limits]: queue must be positive"),
        (("queue = 500", "queue = 1.5"), "table [limits]: field 'queue'"),
        (('"IMPLANT"', '"BLANK"'), "top level: accept cannot hold 'BLANK'"),
        (('model = "model"', ""), "top level: the field 'model' is missing"),
        (('model = "model"', "model = 3"), "top level: field 'model': a path is needed"),
        (('dimse = "PACS@[::1]:104"', 'dimse = "PACS"'), "table [destinations.pacs]: AET@HOST:PORT is needed"),
        (('dimse = "PACS@[::1]:104"', ""), "table [destinations.pacs]: give one of dimse and web"),
        (('kinds = ["report"]', 'password = "x"'), "table [destinations.pacs]: unknown field 'password'"),
        (('kinds = ["report"]', 'kinds = ["reports"]'), "table [destinations.pacs]: kinds has 'reports'; a node makes"),
        (('kinds = ["report"]', "kinds = []"), "table [destinations.pacs]: kinds is empty"),
        (
            ("[limits]", '[watch]\nfolder = "/var/lib/unary/in"\n[limits]'),
            "top level: state and the watched folder must not",
        ),
        (("[limits]", '[watch]\nfolder = "/var/lib"\n[limits]'), "top level: state and the watched folder must not"),
        (("token_variable =", "user ="), "table [destinations.archive]: give user with password_file"),
        (("https://archive", "http://archive"), "table [destinations.archive]: over plain http anybody can read"),
        (("[destinations.pacs]", "[destinations"), "no TOML"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, change, words):
    path = write(tmp_path, GOOD.replace(*change, 1))
    with pytest.raises(UnaryError) as caught:
        read_config(path)
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)


def test_an_open_listener_can_be_asked_for(tmp_path):
    text = GOOD.replace("port = 11112", 'port = 11112\nhost = "0.0.0.0"\nallow_insecure = true')
    assert read_config(write(tmp_path, text)).dimse.host == "0.0.0.0"


def test_what_a_configuration_names_must_be_there(tmp_path, normals):
    model = fit(normals, FitConfig(held_out=0.5), detector="laplacian", progress=False)
    text = f'model = "model"\nstate = "state"\n[watch]\nfolder = "{tmp_path / "inbox"}"\n'
    with pytest.raises(UnaryError, match="inbox: no such folder, and it is to be watched"):
        check_config(read_config(write(tmp_path, text)), model)
    (tmp_path / "inbox").mkdir()
    check_config(read_config(write(tmp_path, text)), model)
    (tmp_path / "node.pem").write_text("no certificate")
    text += '[web]\nport = 1\ncertificate = "node.pem"\nkey = "node.pem"\n'
    with pytest.raises(UnaryError, match=r"node\.pem: certificate, key and CA must be PEM"):
        check_config(read_config(write(tmp_path, text)), model)


def test_something_must_bring_images(tmp_path):
    with pytest.raises(UnaryError, match="one of the tables dimse, web and watch"):
        read_config(write(tmp_path, 'model = "m"\nstate = "s"\n'))


def test_secrets_come_from_files_or_the_environment_and_are_never_quoted(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("of the file\n")
    assert read_secret(file, None, "token") == "of the file"
    file.write_text("\n")
    with pytest.raises(UnaryError, match="the token is empty"):
        read_secret(file, None, "token")
    with pytest.raises(UnaryError, match="cannot be read"):
        read_secret(tmp_path / "none", None, "token")
    monkeypatch.delenv("NO_SUCH", raising=False)
    with pytest.raises(UnaryError, match="NO_SUCH"):
        read_secret(None, "NO_SUCH", "token")


def test_the_example_in_the_docs_is_right_and_shows_every_default(tmp_path):
    text = (Path(__file__).parents[1] / "docs" / "node.md").read_text()
    example = text.partition("```toml\n")[2].partition("```")[0]
    config = read_config(write(tmp_path, example))
    assert [each.name for each in config.destinations] == ["pacs", "research"]
    assert (config.limits, config.sending) == (Limits(), Sending())
    bare = read_config(write(tmp_path, re.sub(r"^(pause_s|maps|accept) = .*\n", "", example, flags=re.MULTILINE)))
    assert bare == config
    for kind in (NodeConfig, DimseListener, WebListener, Watch, Limits, Sending, Destination, Caller):
        for field in dataclasses.fields(kind):
            assert re.search(rf"\b{field.name}\b", example + "destinations name"), field.name
