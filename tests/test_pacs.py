"""Sending to peers made here that misbehave on purpose, and a round trip through a real PACS (Orthanc)."""

import ctypes
import fcntl
import http.server
import json
import logging
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pynetdicom
import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass
from pydicom.dataset import Dataset
from test_outputs_dicom import POINT, RUN, make_detection, make_map

from unary.cli.main import main
from unary.clinic.pacs import describe_deliveries, store_files
from unary.clinic.pacs_address import DimseAddress, Patience, Tls, WebAddress
from unary.clinic.pacs_files import read_parcel, read_whole, select_files
from unary.datasets.phantom import PhantomConfig, build_phantom, write_phantom
from unary.errors import MissingPackageError, UnaryError
from unary.outputs.dicom import KINDS
from unary.outputs.dicom.source import read_source
from unary.outputs.dicom.study import StudyImage
from unary.outputs.dicom.study_writing import write_study_objects
from unary.outputs.dicom.writing import write_dicom_results

ORTHANC, PLUGIN = Path("/usr/sbin/Orthanc"), Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "reader", "correct-horse"
CANARY = "KANARIE"
CLONE_NEWNET = 0x40000000


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the paths of an image and of its results, of all kinds."""
    folder = tmp_path_factory.mktemp("study")
    source = folder / "image.dcm"
    phantom = build_phantom(PhantomConfig(rows=256, cols=192), rng=np.random.default_rng(8), view="MLO")
    write_phantom(phantom, source, image_id="image", patient_id=CANARY)
    detection = make_detection((256, 192))
    anomaly_map = make_map((256, 192))
    results = write_dicom_results(source, detection, RUN, folder, kinds=KINDS, anomaly_map=anomaly_map)
    return source, *results


def find_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- peers that misbehave -------------------------------------------------------------------------------------------

IMPATIENT = Patience(connect_timeout_s=3.0, answer_timeout_s=3.0, pause_s=0.0)


def send(paths, address, patience=IMPATIENT):
    return store_files([read_parcel(path) for path in paths], address, patience)


@contextmanager
def dimse_peer(answer, *, classes=None, title="PEER", check=False, host="127.0.0.1", context=None):
    """Listen on the loopback for C-STORE; ``answer`` maps the number of a request to a status."""
    entity = pynetdicom.AE(ae_title=title)
    entity.require_called_aet = check
    entity.maximum_pdu_size = 0
    for offered in pynetdicom.StoragePresentationContexts:
        if classes is None or offered.abstract_syntax in classes:
            entity.add_supported_context(offered.abstract_syntax)
    received = []

    def handle(event):
        status = answer(len(received))
        received.append(event.request.AffectedSOPInstanceUID)
        return status

    handlers = [(pynetdicom.evt.EVT_C_STORE, handle)]
    server = entity.start_server((host, 0), block=False, evt_handlers=handlers, ssl_context=context)
    accept, wires = server.get_request, []

    def take():
        wire, address = accept()
        wires.append(wire)
        return wire, address

    server.get_request = take
    try:
        yield server.socket.getsockname()[1], received
    finally:
        server.shutdown()
        for wire in wires:  # pynetdicom leaves open what the peer was the first to close
            wire.close()


def call(port, **changes):
    return DimseAddress(**{"host": "127.0.0.1", "port": port, "called_title": "PEER", **changes})


def test_every_file_is_reported_when_all_are_stored(files):
    with dimse_peer(lambda _: 0x0000) as (port, received):
        deliveries = send(files, call(port))
    assert [d.parcel.path for d in deliveries] == list(files)
    assert all(d.stored and d.attempts == 1 and d.note == "" for d in deliveries)
    assert received == [pydicom.dcmread(path).SOPInstanceUID for path in files]


def test_a_refusal_of_one_object_is_final_and_the_others_are_stored(files):
    with dimse_peer(lambda n: 0xC000 if n == 1 else 0x0000) as (port, received):
        deliveries = send(files, call(port))
    assert [d.stored for d in deliveries] == [True, False, True, True, True, True]
    assert deliveries[1].note == "refused with 0xC000, cannot be understood"
    assert len(received) == 6


def test_a_peer_out_of_resources_is_asked_again_for_what_is_missing_alone(files):
    with dimse_peer(lambda n: 0xA700 if n in (2, 3) else 0x0000) as (port, received):
        deliveries = send(files, call(port))
    assert [d.attempts for d in deliveries] == [1, 1, 2, 2, 1, 1]
    assert received[6:] == received[2:4]


def test_attempts_are_bounded(files):
    with dimse_peer(lambda _: 0xA700) as (port, received):
        deliveries = send(files, call(port), Patience(attempts=2, pause_s=0))
    assert {(d.stored, d.attempts, d.note) for d in deliveries} == {(False, 2, "refused with 0xA700, out of resources")}
    assert len(received) == 12


@pytest.mark.parametrize(
    ("status", "stored", "words"),
    [
        (0xB000, True, "warning 0xB000, elements were changed"),
        (0xB006, True, "elements were discarded"),
        (0xB007, True, "does not match its SOP class"),
        (0xB123, True, "see its conformance statement"),
        (0x0107, True, "an attribute has an error"),
        (0x0116, True, "out of range"),
        (0x0111, True, "has an object of its SOP Instance UID already (0x0111), which was not compared"),
        (0x0122, False, "this kind of object is not taken"),
        (0x0124, False, "not authorised"),
        (0xA900, False, "does not match its SOP class"),
        (0xC123, False, "cannot be understood"),
        (0x1234, False, "refused with 0x1234"),
    ],
)
def test_each_status_has_its_words(files, status, stored, words):
    with dimse_peer(lambda _: status) as (port, _):
        (delivery,) = send(files[1:2], call(port))
    assert (delivery.stored, delivery.attempts) == (stored, 1)
    assert words in delivery.note


def test_an_object_of_others_that_the_pacs_holds_already_is_not_believed_to_be_the_same(files):
    with dimse_peer(lambda _: 0x0111) as (port, _):
        image, result = send(files[:2], call(port))
    assert (image.stored, result.stored) == (False, True)
    assert "not compared" in image.note


def test_kinds_that_the_peer_does_not_take_are_named(files):
    with dimse_peer(lambda _: 0x0000, classes=["1.2.840.10008.5.1.4.1.1.1.2"]) as (port, received):
        deliveries = send(files, call(port))
        assert [d.stored for d in deliveries] == [True] + 5 * [False]
        assert "does not take this kind of object" in deliveries[1].note
        assert len(received) == 1
        deliveries = send(files[1:3], call(port))
    assert {(d.attempts, d.note.split(" these")[0]) for d in deliveries} == {(1, "the peer takes none of")}


def test_more_kinds_than_one_association_can_offer_are_sent_over_several(files, monkeypatch):
    monkeypatch.setattr("unary.clinic.pacs_dimse._MOST_CONTEXTS", 2)
    with dimse_peer(lambda _: 0x0000) as (port, received):
        deliveries = send(files, call(port))
    assert all(d.stored for d in deliveries)
    assert len(received) == 6


def test_a_rejected_association_says_why_and_is_not_repeated(files):
    with dimse_peer(lambda _: 0x0000, check=True) as (port, received):
        deliveries = send(files[:2], call(port, called_title="OTHER"))
    assert received == []
    assert [d.attempts for d in deliveries] == [1, 1]
    assert "association rejected" in deliveries[0].note
    assert "Called AE title not recogni" in deliveries[0].note


def test_nobody_listening_is_tried_again_then_given_up(files):
    (delivery,) = send(files[:1], call(port := find_port()))
    assert (delivery.attempts, delivery.note) == (3, f"connection refused by 127.0.0.1:{port}: nothing listens there")


@pytest.fixture
def names(monkeypatch):
    """A name service that knows one name, so that none is asked for over the network."""
    known = socket.getaddrinfo

    def resolve(host, *rest, **options):
        if host == "two-addresses.invalid":
            return [entry for each in ("127.0.0.1", "::1") for entry in known(each, *rest, **options)]
        if str(host).endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return known(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_an_unknown_host_is_named_at_once(files, names):
    for address, place in (
        (call(104, host="pacs.invalid"), "pacs.invalid:104"),
        (WebAddress("https://pacs.invalid:8443/dicom-web"), "pacs.invalid:8443"),
    ):
        deliveries = send(files, address)
        assert {d.note for d in deliveries} == {f"unknown host {place}: Name or service not known"}
        assert max(d.attempts for d in deliveries) == 1


@pytest.mark.parametrize("host", ["[::1]", "two-addresses.invalid"])
def test_a_peer_is_reached_by_ipv6_and_by_whichever_address_its_name_has(files, names, host):
    with dimse_peer(lambda _: 0x0000, host="::1") as (port, received):
        address = DimseAddress.parse(f"PEER@{host}:{port}")
        deliveries = send(files[:1], address)
    assert [d.stored for d in deliveries] == [True], deliveries[0].note
    assert len(received) == 1


def test_a_silent_peer_ends_in_a_timeout(files):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        port = silent.getsockname()[1]
        (delivery,) = send(files[:1], call(port), Patience(answer_timeout_s=0.5, attempts=1))
        assert f"127.0.0.1:{port} did not answer in time" in delivery.note
        assert time.monotonic() - start < 5


def test_an_association_that_breaks_off_is_taken_up_again(files):
    broken = []

    def answer(number):
        if number == 1 and not broken:
            broken.append(True)
            for link in threading.enumerate():
                if isinstance(link, pynetdicom.association.Association) and link.mode == "acceptor":
                    link.abort()
        return 0x0000

    with dimse_peer(answer) as (port, _):
        deliveries = send(files[:4], call(port))
    assert [d.attempts for d in deliveries] == [1, 2, 2, 2]


@pytest.mark.parametrize("length", [1500, -100])
def test_a_file_that_breaks_off_is_not_sent_and_does_not_hold_up_the_others(files, tmp_path, length):
    damaged = tmp_path / "damaged.dcm"
    damaged.write_bytes(files[0].read_bytes()[:length])
    with dimse_peer(lambda _: 0x0000) as (port, _):
        by_dimse = send([damaged, files[1]], call(port))
    with web_peer(lambda _, body: (200, confirm(body))) as (url, _):
        by_web = send([damaged, files[1]], WebAddress(url))
    for deliveries in (by_dimse, by_web):
        assert [(d.stored, d.attempts) for d in deliveries] == [(False, 1), (True, 1)]
        assert "damaged" in deliveries[0].note


@contextmanager
def web_peer(answer, *, context=None, host="127.0.0.1"):
    """Listen on the loopback for POST; ``answer`` maps the number of a request and its body to status and JSON."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            code, content, *headers = answer(len(requests), body)
            requests.append((self.path, self.headers.get("Authorization"), len(body)))
            payload = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            for name, value in {"Content-Type": "application/dicom+json", **dict(headers)}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def handle_error(self, *_):
            """A client that breaks off is what some tests are about."""

    server = Server((host, 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    scheme, place = "http" if context is None else "https", f"[{host}]" if ":" in host else host
    try:
        yield f"{scheme}://{place}:{server.server_port}/dicom-web", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def find_uid(body):
    start = body.index(b"DICM") - 128
    return str(pydicom.dcmread(BytesIO(body[start:]), stop_before_pixels=True).SOPInstanceUID)


def confirm(body, **more):
    """The answer of a server that has stored what is in the body."""
    item = {"00081155": {"vr": "UI", "Value": [find_uid(body)]}, **more}
    return {"00081199": {"vr": "SQ", "Value": [item]}}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """Nothing of the environment's: no proxy, no passwords in a file, no certificates."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("UNARY_WEB_PASSWORD", "UNARY_WEB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_a_web_server_that_is_busy_is_asked_again_with_the_whole_body(files):
    def answer(number, body):
        return (503, {}) if number == 0 else (200, confirm(body))

    with web_peer(answer) as (url, requests):
        deliveries = send(files[:2], WebAddress(url, token="secret-token"))
    assert [d.attempts for d in deliveries] == [2, 1]
    assert {authorization for _, authorization, _ in requests} == {"Bearer secret-token"}
    assert requests[0][2] == requests[1][2] > files[0].stat().st_size


def test_a_file_is_sent_to_the_byte(files):
    bodies = []

    def answer(_, body):
        bodies.append(body)
        return 200, confirm(body)

    with web_peer(answer) as (url, requests):
        send(files, WebAddress(url + "/"))
    assert all(path.read_bytes() in body for path, body in zip(files, bodies, strict=True))
    assert {path for path, _, _ in requests} == {"/dicom-web/studies"}


def fail_one(body, reason):
    item = {"00081197": {"vr": "US", "Value": [reason]}}
    return {"00081198": {"vr": "SQ", "Value": [item]}}


@pytest.mark.parametrize(
    ("answer", "message", "attempts"),
    [
        (lambda n, body: (500, {}), "HTTP status 500", 2),
        (lambda n, body: (413, {}), "HTTP status 413", 1),
        (lambda n, body: (202, fail_one(body, 0xA900)), "refused with 0xA900, it does not match its SOP class", 1),
        (lambda n, body: (409, fail_one(body, 0x0122)), "refused with 0x0122, this kind of object is not taken", 1),
        (lambda n, body: (202, fail_one(body, 0xA700)), "refused with 0xA700, out of resources", 2),
        (lambda n, body: (409, {}), "HTTP status 409", 1),
        (lambda n, body: (409, b"<html>"), "HTTP status 409", 1),
        (lambda n, body: (200, {}), "does not confirm", 1),
        (lambda n, body: (200, b"welcome", ("Content-Type", "text/html")), "does not confirm", 1),
        (lambda n, body: (200, []), "not DICOMweb", 1),
        (lambda n, body: (200, b"{"), "not DICOMweb", 1),
        (lambda n, body: (200, {"00081199": 5}), "not DICOMweb", 1),
    ],
)
def test_a_web_server_that_refuses_is_not_believed(files, answer, message, attempts):
    def answer_first_well(number, body):
        return (200, confirm(body)) if number == 0 else answer(number, body)

    with web_peer(answer_first_well) as (url, _):
        first, second = send(files[:2], WebAddress(url), Patience(attempts=2, pause_s=0))
    assert (first.stored, first.attempts) == (True, 1)
    assert (second.stored, second.attempts) == (False, attempts)
    assert message in second.note


def test_a_web_server_s_warning_counts_as_stored_and_is_passed_on(files):
    changed = {"00081196": {"vr": "US", "Value": [0xB000]}}
    with web_peer(lambda _, body: (202, confirm(body, **changed))) as (url, _):
        (delivery,) = send(files[1:2], WebAddress(url))
    assert delivery.stored
    assert delivery.note == "warning 0xB000, elements were changed"


@pytest.mark.parametrize("status", [401, 403, 404, 407, 302, 308, 503])
def test_what_the_service_refuses_to_everything_is_not_tried_with_every_file(files, status):
    location = ("Location", "https://other.invalid/dicom-web/studies?token=abc")
    with web_peer(lambda *_: (status, {}, location)) as (url, requests):
        deliveries = send(files, WebAddress(url, user="me", password="wrong"), Patience(attempts=2, pause_s=0))
    assert len(requests) == (2 if status == 503 else 1)
    assert [d.attempts for d in deliveries] == [len(requests)] + 5 * [0]
    (note,) = {d.note for d in deliveries}
    assert str(status) in note
    assert "abc" not in note
    assert ("https://other.invalid/dicom-web/studies" in note) == (status in (302, 308))


def test_a_web_server_that_is_silent_or_absent_ends_in_an_error(files):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        deliveries = send(files, WebAddress(url), Patience(answer_timeout_s=0.3, attempts=1))
    assert time.monotonic() - start < 3, "the others are not waited for"
    assert {d.note for d in deliveries} == {"no answer within 0.3 s"}
    (delivery,) = send(files[:1], WebAddress(f"http://127.0.0.1:{find_port()}"), Patience(attempts=2, pause_s=0))
    assert delivery.note.startswith("connection refused by 127.0.0.1:")
    assert delivery.attempts == 2


def test_a_web_server_is_reached_by_ipv6(files):
    with web_peer(lambda _, body: (200, confirm(body)), host="::1") as (url, _):
        assert "[::1]" in url
        (delivery,) = send(files[:1], WebAddress(url, token="secret"))  # plain http, but to this machine
    assert delivery.stored, delivery.note


def test_no_password_comes_from_a_file_and_none_goes_to_a_proxy_or_a_log(files, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password from-netrc\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{find_port()}")
    with web_peer(lambda _, body: (200, confirm(body))) as (url, requests):
        assert send(files[:1], WebAddress(url))[0].stored
        assert send(files[:1], WebAddress(url, user="mé", password="pässword"))[0].stored
    assert [authorization for _, authorization, _ in requests] == [None, "Basic bcOpOnDDpHNzd29yZA=="]
    assert [record.getMessage() for record in caplog.records] == 2 * ["stored 1 of 1 files"]


# --- secure connections ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, and certificates of a server and a client that it signed; and one that nobody did."""
    openssl, folder = shutil.which("openssl"), tmp_path_factory.mktemp("certificates")
    if openssl is None:
        pytest.skip("openssl is missing")

    def make(name, *options):
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        files = [
            "-keyout",
            folder / f"{name}.key",
            "-out",
            folder / f"{name}.pem",
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
        ]
        subprocess.run([openssl, "req", "-x509", *key, *files, *options], check=True, capture_output=True)

    names, authority = (
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        ["-CA", folder / "ca.pem", "-CAkey", folder / "ca.key"],
    )
    make("ca", "-addext", "keyUsage=critical,keyCertSign")
    make("server", *authority, "-addext", names, "-addext", "basicConstraints=critical,CA:FALSE")
    make("client", *authority, "-addext", "basicConstraints=critical,CA:FALSE")
    make(
        "elsewhere",
        *authority,
        "-addext",
        "subjectAltName=DNS:elsewhere",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    )
    make("stranger", "-addext", names)
    encrypt = ["ec", "-in", folder / "client.key", "-aes256", "-passout", "pass:x", "-out", folder / "encrypted.key"]
    subprocess.run([openssl, *encrypt], check=True, capture_output=True)
    return folder


def serve_with(folder, name, *, ask=False):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    if ask:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "ca.pem")
    return context


def try_both(files, tls, context):
    """Send a file by either way to a server with this certificate; return the deliveries."""
    patience = Patience(connect_timeout_s=3, answer_timeout_s=3, attempts=2, pause_s=0)
    with dimse_peer(lambda _: 0, context=context) as (port, _):
        (by_dimse,) = send(files[1:2], call(port, tls=tls), patience)
    with web_peer(lambda _, body: (200, confirm(body)), context=context) as (url, _):
        (by_web,) = send(files[1:2], WebAddress(url, tls=tls, token="secret"), patience)
    return by_dimse, by_web


def test_files_are_sent_over_tls_to_a_server_that_an_own_authority_vouches_for(files, certificates):
    tls = Tls(certificates / "ca.pem", certificates / "client.pem", certificates / "client.key")
    for delivery in try_both(files, tls, serve_with(certificates, "server", ask=True)):
        assert delivery.stored, delivery.note
    both = certificates / "both.pem"  # certificate and key in one file
    both.write_bytes((certificates / "client.pem").read_bytes() + (certificates / "client.key").read_bytes())
    for delivery in try_both(files, Tls(certificates / "ca.pem", both), serve_with(certificates, "server", ask=True)):
        assert delivery.stored, delivery.note


@pytest.mark.parametrize(
    ("trusted", "name", "words"),
    [
        ("ca", "stranger", "is not trusted"),
        (None, "server", "is not trusted"),
        ("ca", "elsewhere", "IP address mismatch"),
    ],
)
def test_a_server_that_cannot_be_trusted_gets_nothing_and_is_not_tried_again(files, certificates, trusted, name, words):
    tls = Tls(certificates / f"{trusted}.pem") if trusted else Tls()
    for delivery in try_both(files, tls, serve_with(certificates, name)):
        assert words in delivery.note
        assert ("--ca-file" in delivery.note) == (words == "is not trusted")
        assert (delivery.stored, delivery.attempts) == (False, 1)


def test_a_server_that_asks_for_a_certificate_is_said_to(files, certificates):
    by_dimse, by_web = try_both(files, Tls(certificates / "ca.pem"), serve_with(certificates, "server", ask=True))
    for delivery in (by_dimse, by_web):
        assert "client certificate" in delivery.note, delivery.note
        assert not delivery.stored


def test_a_server_that_does_not_speak_tls_is_named(files, certificates):
    with dimse_peer(lambda _: 0) as (port, _):
        (by_dimse,) = send(
            files[:1], call(port, tls=Tls(certificates / "ca.pem")), Patience(answer_timeout_s=2, attempts=1)
        )
    with web_peer(lambda _, body: (200, confirm(body))) as (url, _):
        (by_web,) = send(
            files[:1], WebAddress(url.replace("http:", "https:")), Patience(answer_timeout_s=2, attempts=1)
        )
    assert "no " in by_dimse.note
    assert "does not speak TLS" in by_web.note


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("nowhere.pem",), r"nowhere\.pem: no certificates"),
        (("client.key",), r"client\.key: no certificates"),
        (("ca.pem", "nowhere.pem"), r"nowhere\.pem: need a certificate"),
        (("ca.pem", "client.pem"), r"client\.pem: need a certificate and the key"),
        (("ca.pem", "client.pem", "server.key"), r"client\.pem and .*server\.key: need a certificate and the key"),
        (("ca.pem", "client.pem", "encrypted.key"), "the key not encrypted"),
    ],
)
def test_files_that_are_no_certificates_are_named(files, certificates, names, words):
    tls = Tls(*(certificates / name for name in names))
    for address in (call(104, tls=tls), WebAddress("https://127.0.0.1:1/", tls=tls)):
        with pytest.raises(UnaryError, match=words):
            send(files[:1], address)


# --- addresses ------------------------------------------------------------------------------------------------------


def test_addresses_are_checked_and_hide_what_is_secret():
    for changes in (
        {"called_title": ""},
        {"called_title": "x" * 17},
        {"port": 0},
        {"port": 65536},
        {"host": "pacs..local"},
    ):
        with pytest.raises(ValueError):
            DimseAddress(**{"host": "pacs", "port": 104, "called_title": "PACS", **changes})
    for arguments in (
        {"url": "ftp://x"}, {"url": "http://me:secret@x"}, {"url": "http://x", "user": "me"}, {"url": "https://"},
        {"url": "https://pacs..local/"},
        {"url": "https://x:99999/"}, {"url": "https://x/?token=secret"}, {"url": "https://x", "token": "secret\n"},
        {"url": "https://x", "token": "sécret"}, {"url": "http://x", "tls": Tls()},
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            WebAddress(**arguments)
        assert "cret" not in str(caught.value)
    assert "secret" not in repr(WebAddress("https://x", user="me", password="secret"))
    assert "secret" not in repr(WebAddress("https://x", token="secret"))
    with pytest.raises(ValueError, match="client certificate"):
        Tls(client_key=Path("key"))
    for changes in ({"attempts": 0}, {"connect_timeout_s": 0}, {"answer_timeout_s": float("nan")}, {"pause_s": -1}):
        with pytest.raises(ValueError):
            Patience(**changes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PACS@host:104", ("PACS", "host", 104)),
        ("PACS@127.0.0.1:104", ("PACS", "127.0.0.1", 104)),
        ("PACS@[::1]:104", ("PACS", "::1", 104)),
        ("P@CS@[2001:db8::7]:11112", ("P@CS", "2001:db8::7", 11112)),
        ("PACS@::1:104", None),
        ("PACS@[::1]", None),
        ("PACS@host", None),
        ("host:104", None),
        ("PACS@host:port", None),
    ],
)
def test_an_address_of_dimse_is_read(text, expected):
    if expected is None:
        with pytest.raises(ValueError, match=r"AET@\[::1\]:PORT"):
            DimseAddress.parse(text)
        return
    address = DimseAddress.parse(text)
    assert (address.called_title, address.host, address.port) == expected
    assert DimseAddress.parse(f"{address.called_title}@{address.place}") == address


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://localhost:8042/dicom-web", True),
        ("http://127.0.0.1/dicom-web", True),
        ("http://127.8.9.10/dicom-web", True),
        ("http://[::1]:8042/dicom-web", True),
        ("https://pacs/dicom-web", True),
        ("http://pacs/dicom-web", False),
        ("http://localhost.example.org/", False),
        ("http://127.0.0.1.example.org/", False),
        ("http://10.0.0.1/", False),
        ("http://[2001:db8::1]/", False),
    ],
)
def test_secrets_go_over_plain_http_to_this_machine_alone(url, allowed):
    for secret in ({"user": "me", "password": "pw"}, {"token": "t"}):
        if allowed:
            WebAddress(url, **secret)
            continue
        with pytest.raises(ValueError, match="plain http"):
            WebAddress(url, **secret)
        WebAddress(url, plain_http=True, **secret)
    WebAddress(url)


@pytest.mark.parametrize(
    ("package", "address"), [("pynetdicom", call(104)), ("requests", WebAddress("http://127.0.0.1"))]
)
def test_missing_packages_are_named(files, monkeypatch, package, address):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"unary\[pacs\]"):
        send(files, address)


# --- what is sent, and what is said ---------------------------------------------------------------------------------


@pytest.fixture
def results(files, tmp_path):
    """A folder of results, with what may lie about in one."""
    folder = tmp_path / "results"
    for name, paths in {"IM1": files[1:4], "IM2": files[4:], ".unary.partial/IM3": files[1:2]}.items():
        (folder / name).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, folder / name)
    (folder / "IM1" / "result.json").write_text("{}")
    (folder / "IM1" / ".77.capture.dcm").write_bytes(b"half")
    shutil.copy(files[0], folder / "image.dcm")
    shutil.copy(files[0], folder / "IM2" / "1.2.840.113619")
    shutil.copy(folder / "IM1" / "report.dcm", folder / "IM2" / "report.DCM")
    return folder


def test_of_a_folder_unary_s_own_results_are_sent_and_all_else_is_counted(results):
    selection = select_files([results])
    names = [str(parcel.path.relative_to(results)) for parcel in selection.parcels]
    assert names == ["IM1/capture.dcm", "IM1/report.dcm", "IM1/segmentation.dcm", "IM2/heat_map.dcm",
                     "IM2/presentation.dcm"]  # fmt: skip
    assert selection.unfit == ()
    counted = {why.split()[0]: len(paths) for why, paths in selection.passed_over}
    assert counted == {"DICOM": 2, "hidden": 2, "copies": 1}
    named = select_files([results / "image.dcm", results])
    assert named.parcels[0].path == results / "image.dcm"
    assert len(named.parcels) == 6
    with pytest.raises(UnaryError, match="no such file"):
        select_files([results / "nowhere"])


def test_what_is_no_dicom_or_stands_for_two_contents_is_unfit_and_the_others_are_sent(results, files):
    (results / "IM2" / "capture.dcm").write_text("no DICOM")
    stored = (results / "IM1" / "report.dcm").read_bytes()
    (results / "IM2" / "report.DCM").write_bytes(stored.replace(b"20260203", b"20260204"))
    selection = select_files([results])
    assert len(selection.parcels) == 4
    why = {str(path.relative_to(results)): text for path, text in selection.unfit}
    assert set(why) == {"IM2/capture.dcm", "IM1/report.dcm", "IM2/report.DCM"}
    assert "not a DICOM file" in why["IM2/capture.dcm"]
    assert why["IM1/report.dcm"] == "2 files have its SOP Instance UID and different contents"


def test_every_failure_is_named_with_its_folder_and_reason(results):
    (results / "IM2" / "capture.dcm").write_text("no DICOM")
    with dimse_peer(lambda n: {0: 0xA900, 2: 0xB000, 3: 0xA900}.get(n, 0)) as (port, _):
        selection = select_files([results])
        report = describe_deliveries(selection, store_files(selection.parcels, call(port), IMPATIENT))
    text = "\n".join(report.lines)
    assert (report.stored, report.failed) == (3, 3)
    refused = "not stored: refused with 0xA900, it does not match its SOP class:\n"
    assert f"{refused}  {results}/IM1/capture.dcm\n  {results}/IM2/heat_map.dcm\n" in text
    assert f"{results}/IM1/segmentation.dcm: stored: warning 0xB000, elements were changed" in text
    assert f"{results}/IM2/capture.dcm: not sent: not a DICOM file" in text
    assert "passed over: 2 DICOM files that are not unary's results" in text
    assert report.lines[-1] == "3 of 6 objects stored; what the PACS held before was not compared"
    assert CANARY not in text


def run(capsys, *arguments):
    code = main(["send", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_sends_and_says_what_became_of_it(results, capsys, monkeypatch):
    with dimse_peer(lambda _: 0) as (port, received):
        code, out, err = run(capsys, results, "--dimse", f"PEER@127.0.0.1:{port}", "--attempts", 1)
    assert (code, len(received)) == (0, 5)
    assert out == "5 of 5 objects stored; what the PACS held before was not compared\n"
    assert "passed over: 2 hidden files" in err
    monkeypatch.setenv("UNARY_WEB_PASSWORD", "sesame")
    with web_peer(lambda *_: (401, {})) as (url, requests):
        code, out, err = run(capsys, results, "--web", url, "--user", "me")
    assert (code, len(requests)) == (2, 1)
    assert "HTTP status 401, user, password or token refused" in err
    assert "sesame" not in out + err
    assert out == "0 of 5 objects stored\n"


def test_an_interrupted_command_says_what_was_stored(results, capsys, monkeypatch):
    calls = []

    def interrupt(path):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read_whole(path)

    monkeypatch.setattr("unary.clinic.pacs_dimse.read_whole", interrupt)
    monkeypatch.setattr("unary.clinic.pacs_web.read_whole", interrupt)
    with dimse_peer(lambda _: 0) as (port, received):
        code, out, err = run(capsys, results, "--dimse", f"PEER@127.0.0.1:{port}")
    assert (code, out, len(received)) == (130, "", 2)
    assert "2 of 5 objects stored" in err
    assert f"not stored: interrupted before it was confirmed (not tried):\n  {results}/IM1/segmentation.dcm\n" in err
    calls.clear()
    with web_peer(lambda _, body: (200, confirm(body))) as (url, requests):
        code, out, err = run(capsys, results, "--web", url)
    assert (code, len(requests)) == (130, 2)
    assert "2 of 5 objects stored" in err


def test_folders_and_pipes_that_cannot_be_read_are_named(results, monkeypatch):
    os.mkfifo(results / "IM1" / "pipe.dcm")
    listed = os.scandir

    def refuse(path):
        if Path(path).name == "IM2":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    selection = select_files([results])
    assert len(selection.parcels) == 3
    assert dict(selection.unfit) == {
        results / "IM1" / "pipe.dcm": "no file",
        results / "IM2": "this folder cannot be read (Permission denied)",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dimse", "x"], "AET@HOST:PORT is needed"),
        (["--dimse", "P@h:104", "--ca-file", "ca.pem"], "--ca-file needs --tls"),
        (["--dimse", "P@h:104", "--user", "me"], "--user goes with --web"),
        (["--dimse", "P@h:104", "--attempts", "0"], "--attempts"),
        (["--dimse", "P@h:104", "--tls", "--client-key", "key"], "--client-key needs --client-cert"),
        (["--web", "https://h", "--tls"], "--tls goes with --dimse"),
        (["--web", "http://h", "--ca-file", "ca.pem"], "--web https://"),
        (["--web", "https://h", "--user", "me"], "UNARY_WEB_PASSWORD"),
        (["--web", "http://h"], "plain http"),
        (["--web", "http://h?token=canary-token"], "ends before any"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_sent(results, capsys, monkeypatch, arguments, words):
    if words == "plain http":
        monkeypatch.setenv("UNARY_WEB_TOKEN", "canary-token")
    code, out, err = run(capsys, results, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "canary-token" not in err


# --- a real PACS ----------------------------------------------------------------------------------------------------


@contextmanager
def private_network():
    """Run this thread, and what it starts, in a network of its own; yield why that was not possible, or None.

    Orthanc 1.10 listens on every interface and cannot be told otherwise; in a network namespace there is the loopback
    alone. Where the system does not allow one, Orthanc still refuses what is not local or not known to it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before:
        if libc.unshare(CLONE_NEWNET) != 0:
            yield os.strerror(ctypes.get_errno())
            return
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:  # as "ip link set lo up"
                request = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # up and running
                fcntl.ioctl(control, 0x8914, request)  # SIOCSIFFLAGS
            yield None
        finally:
            assert libc.setns(before.fileno(), CLONE_NEWNET) == 0


def configure(folder, *, web_port, dimse_port, reader_port):
    """Return Orthanc's configuration: known callers alone, everything in the folder."""
    return {
        "Name": "unary test", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "HttpPort": web_port, "RemoteAccessAllowed": False, "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD}, "SslEnabled": False,
        "DicomPort": dimse_port, "DicomAet": "ORTHANC", "DicomCheckCalledAet": True, "DicomAlwaysAllowStore": False,
        "DicomModalities": {"us": {"AET": "UNARY", "Host": "127.0.0.1", "Port": reader_port}},
        "Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """Start a PACS and return its addresses."""
    for needed in (ORTHANC, PLUGIN):
        if not needed.exists():
            pytest.skip(f"{needed} is missing: apt-get install orthanc orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("orthanc")
    (folder / "db").mkdir()
    with private_network() as refusal:
        if refusal is not None:
            logging.getLogger(__name__).info("no network of its own (%s): Orthanc listens on every interface", refusal)
        web_port, dimse_port = find_port(), find_port()
        settings = configure(folder, web_port=web_port, dimse_port=dimse_port, reader_port=find_port())
        (folder / "orthanc.json").write_text(json.dumps(settings))
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([ORTHANC, folder / "orthanc.json"], stdout=log, stderr=log, cwd=folder)
        try:
            url = f"http://127.0.0.1:{web_port}"
            wait_until_it_answers(process, url, folder / "log")
            yield (
                DimseAddress("127.0.0.1", dimse_port, "ORTHANC"),
                WebAddress(f"{url}/dicom-web", user=USER, password=PASSWORD),
            )
        finally:
            process.kill()  # asked to stop, it takes three seconds
            process.wait()


def wait_until_it_answers(process, url, log):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(200):
        try:
            opener.open(url, timeout=1).close()
        except urllib.error.HTTPError as error:  # 401: it is there and asks who we are
            error.close()
            return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"Orthanc does not start: {log.read_text()[-500:]}")


def fetch_by_dimse(address, study):
    """C-GET of a study; return the objects by their UID."""
    received = {}

    def handle(event):
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        received[dataset.SOPInstanceUID] = dataset
        return 0x0000

    classes = [str(uid) for uid in (
        "1.2.840.10008.5.1.4.1.1.1.2", "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.66.4",
        "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.88.50",
    )]  # fmt: skip
    entity = pynetdicom.AE(ae_title=address.calling_title)
    entity.add_requested_context(pynetdicom.sop_class.StudyRootQueryRetrieveInformationModelGet)
    for uid in classes:
        entity.add_requested_context(uid, "1.2.840.10008.1.2.1")
    link = entity.associate(
        address.host,
        address.port,
        ae_title=address.called_title,
        ext_neg=[pynetdicom.build_role(uid, scp_role=True) for uid in classes],
        evt_handlers=[(pynetdicom.evt.EVT_C_STORE, handle)],
    )
    assert link.is_established
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", study
    model = pynetdicom.sop_class.StudyRootQueryRetrieveInformationModelGet
    statuses = [status.Status for status, _ in link.send_c_get(query, model)]
    link.release()
    assert statuses[-1] == 0x0000
    return received


def fetch_by_web(address, study):
    """WADO-RS of a study, as stored; return the objects by their UID."""
    session = create_session_from_user_pass(username=address.user, password=address.password)
    with session:
        client = DICOMwebClient(address.url, session=session)
        objects = client.retrieve_study(study, media_types=(("application/dicom", "*"),))
    return {dataset.SOPInstanceUID: dataset for dataset in objects}


def forget(address, study):
    """Delete a study, through Orthanc's own interface."""
    passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
    root = address.url.removesuffix("/dicom-web")
    passwords.add_password(None, root, USER, PASSWORD, is_authenticated=True)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPBasicAuthHandler(passwords)
    )
    with opener.open(f"{root}/studies") as answer:
        (identifier,) = json.load(answer)
    opener.open(urllib.request.Request(f"{root}/studies/{identifier}", method="DELETE")).close()


def assert_equal(fetched, files):
    """Every object came back, every element as it was sent, pixels included."""
    sent = {dataset.SOPInstanceUID: dataset for dataset in (pydicom.dcmread(path) for path in files)}
    assert fetched.keys() == sent.keys()
    for uid, dataset in sent.items():
        assert fetched[uid].to_json_dict() == dataset.to_json_dict()
        assert fetched[uid].get("PixelData") == dataset.get("PixelData")
        assert fetched[uid].file_meta.TransferSyntaxUID == dataset.file_meta.TransferSyntaxUID


def test_round_trip_through_a_pacs(orthanc, files, caplog, capsys):
    dimse, web = orthanc
    study = pydicom.dcmread(files[0]).StudyInstanceUID
    caplog.set_level(logging.DEBUG)
    capsys.readouterr()
    deliveries = [*send(files[:1], dimse), *send(files[1:], dimse)]
    said = caplog.text
    assert_equal(fetch_by_dimse(dimse, study), files)
    assert_equal(fetch_by_web(web, study), files)
    forget(web, study)
    caplog.clear()
    deliveries += send(files, web)
    deliveries += send(files[1:], web)  # again: the same identifiers, no copies
    said += caplog.text + "".join(capsys.readouterr())
    assert all(delivery.stored for delivery in deliveries), deliveries
    assert_equal(fetch_by_web(web, study), files)
    assert_equal(fetch_by_dimse(dimse, study), files)
    assert CANARY not in said
    assert study not in said
    assert "stored 6 of 6 files" in said


def test_the_objects_of_a_study_go_round_by_both_ways(orthanc, files, tmp_path):
    dimse, web = orthanc
    source = read_source(files[0])
    image = StudyImage(source, "0" * 64, "examined", (0.2, 0.2), make_detection((256, 192)).findings, 3.0, 0.1)
    paths = write_study_objects([image], POINT, RUN, tmp_path)
    study = pydicom.dcmread(files[0]).StudyInstanceUID
    for address in (dimse, web):
        with suppress(ValueError):  # nothing there yet
            forget(web, study)
        assert all(delivery.stored for delivery in send(paths, address))
        assert_equal(fetch_by_web(web, study), paths)
        assert_equal(fetch_by_dimse(dimse, study), paths)


def test_a_pacs_that_does_not_know_us_refuses(orthanc, files):
    dimse, web = orthanc
    stranger = DimseAddress(dimse.host, dimse.port, "ORTHANC", calling_title="EVIL")
    assert not any(delivery.stored for delivery in send(files, stranger, Patience(attempts=1)))
    deliveries = send(files[:2], WebAddress(web.url, user=USER, password="wrong"))
    assert {"HTTP status 401" in delivery.note for delivery in deliveries} == {True}
    assert [delivery.attempts for delivery in deliveries] == [1, 0]
