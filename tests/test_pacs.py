"""Sending to peers made here that misbehave on purpose, and a round trip through a real PACS (Orthanc)."""

import ctypes
import fcntl
import http.server
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pynetdicom
import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass
from pydicom.dataset import Dataset
from test_outputs_dicom import RUN, make_detection, make_map

from unary.clinic.pacs import DeliveryError, DimseAddress, WebAddress, store_files
from unary.datasets.phantom import PhantomConfig, build_phantom, write_phantom
from unary.errors import ImageError, MissingPackageError
from unary.outputs.dicom import KINDS
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


@contextmanager
def dimse_peer(answer, *, classes=None, title="PEER", check=False):
    """Listen on the loopback for C-STORE; ``answer`` maps the number of a request to a status."""
    entity = pynetdicom.AE(ae_title=title)
    entity.require_called_aet = check
    entity.maximum_pdu_size = 0
    for context in pynetdicom.StoragePresentationContexts:
        if classes is None or context.abstract_syntax in classes:
            entity.add_supported_context(context.abstract_syntax)
    received = []

    def handle(event):
        status = answer(len(received))
        received.append(event.request.AffectedSOPInstanceUID)
        return status

    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(pynetdicom.evt.EVT_C_STORE, handle)])
    try:
        yield server.socket.getsockname()[1], received
    finally:
        server.shutdown()


def call(port, **changes):
    settings = {"called_title": "PEER", "timeout_s": 3.0, "pause_s": 0.0, **changes}
    return DimseAddress("127.0.0.1", port, **settings)


def test_every_file_is_reported_when_all_are_stored(files):
    with dimse_peer(lambda _: 0x0000) as (port, received):
        deliveries = store_files(files, call(port))
    assert [d.path for d in deliveries] == list(files)
    assert all(d.stored and d.attempts == 1 and d.note == "" for d in deliveries)
    assert received == [pydicom.dcmread(path).SOPInstanceUID for path in files]


def test_a_refusal_of_one_object_is_final_and_the_others_are_stored(files):
    message = r"1 of 6 files.*report\.dcm: refused with status 0xC000"
    peer = dimse_peer(lambda n: 0xC000 if n == 1 else 0x0000)
    with peer as (port, received), pytest.raises(DeliveryError, match=message) as caught:
        store_files(files, call(port))
    assert [d.stored for d in caught.value.deliveries] == [True, False, True, True, True, True]
    assert len(received) == 6


def test_a_peer_out_of_resources_is_asked_again_for_what_is_missing_alone(files):
    with dimse_peer(lambda n: 0xA700 if n in (2, 3) else 0x0000) as (port, received):
        deliveries = store_files(files, call(port))
    assert [d.attempts for d in deliveries] == [1, 1, 2, 2, 1, 1]
    assert received[6:] == received[2:4]


def test_attempts_are_bounded(files):
    message = r"6 of 6.*after 2 attempts"
    with dimse_peer(lambda _: 0xA700) as (port, received), pytest.raises(DeliveryError, match=message):
        store_files(files, call(port, attempts=2))
    assert len(received) == 12


def test_a_warning_counts_as_stored_and_is_passed_on(files):
    with dimse_peer(lambda _: 0xB000) as (port, _):
        (delivery,) = store_files(files[:1], call(port))
    assert delivery.stored
    assert delivery.note == "stored with warning 0xB000"


def test_kinds_that_the_peer_does_not_take_are_named(files):
    with dimse_peer(lambda _: 0x0000, classes=["1.2.840.10008.5.1.4.1.1.1.2"]) as (port, received):
        with pytest.raises(DeliveryError, match="does not take this kind of object") as caught:
            store_files(files, call(port))
        assert [d.stored for d in caught.value.deliveries] == [True] + 5 * [False]
        assert len(received) == 1
        with pytest.raises(DeliveryError, match="takes none of these kinds") as caught:
            store_files(files[1:3], call(port))
    assert {d.attempts for d in caught.value.deliveries} == {1}


def test_a_rejected_association_says_why_and_is_not_repeated(files):
    peer = dimse_peer(lambda _: 0x0000, check=True)
    message = r"(?i)association rejected.*called AE title not recogni"
    with peer as (port, received), pytest.raises(DeliveryError, match=message) as caught:
        store_files(files[:2], call(port, called_title="OTHER"))
    assert received == []
    assert [d.attempts for d in caught.value.deliveries] == [1, 1]


def test_nobody_listening_is_tried_again_then_given_up(files):
    with pytest.raises(DeliveryError, match=r"not reachable.*after 3 attempts"):
        store_files(files[:1], call(find_port()))


def test_a_silent_peer_ends_in_a_timeout(files):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(DeliveryError, match="not answered in time"):
            store_files(files[:1], call(silent.getsockname()[1], timeout_s=0.5, attempts=1))
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
        deliveries = store_files(files[:4], call(port))
    assert [d.attempts for d in deliveries] == [1, 2, 2, 2]


def test_what_is_no_dicom_is_refused_before_anything_is_sent(files, tmp_path):
    text = tmp_path / "text.dcm"
    text.write_text("no DICOM")
    with dimse_peer(lambda _: 0x0000) as (port, received), pytest.raises(ImageError, match=r"text\.dcm"):
        store_files([files[0], text], call(port))
    assert received == []
    with pytest.raises(ImageError, match=r"text\.dcm"):
        store_files([text], WebAddress("http://127.0.0.1:9/"))


@pytest.mark.parametrize("length", [500, 1500, -100])
def test_a_file_that_breaks_off_is_not_sent_and_does_not_hold_up_the_others(files, tmp_path, length):
    damaged = tmp_path / "damaged.dcm"
    damaged.write_bytes(files[0].read_bytes()[:length])
    with dimse_peer(lambda _: 0x0000) as (port, _), pytest.raises(DeliveryError, match="damaged beyond") as caught:
        store_files([damaged, files[1]], call(port))
    assert [(d.stored, d.attempts) for d in caught.value.deliveries] == [(False, 1), (True, 1)]
    with web_peer(lambda _, body: (200, confirm(body))) as (url, _), pytest.raises(DeliveryError) as caught:
        store_files([damaged, files[1]], WebAddress(url))
    assert [d.stored for d in caught.value.deliveries] == [False, True]


@contextmanager
def web_peer(answer):
    """Listen on the loopback for POST; ``answer`` maps the number of a request and its body to status and JSON."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.read_body()
            code, text = answer(len(requests), body)
            requests.append((self.path, self.headers.get("Authorization"), len(body)))
            payload = json.dumps(text).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def read_body(self):
            if "Content-Length" in self.headers:
                return self.rfile.read(int(self.headers["Content-Length"]))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def confirm(body):
    """The answer of a server that has stored what is in the body."""
    start = body.index(b"DICM") - 128
    dataset = pydicom.dcmread(BytesIO(body[start:]), stop_before_pixels=True)
    item = {"00081155": {"vr": "UI", "Value": [str(dataset.SOPInstanceUID)]}}
    return {"00081199": {"vr": "SQ", "Value": [item]}}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Keep the loopback out of the way of a proxy that the environment may name."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_a_web_server_that_is_busy_is_asked_again_with_the_whole_body(files):
    def answer(number, body):
        return (503, {}) if number == 0 else (200, confirm(body))

    with web_peer(answer) as (url, requests):
        deliveries = store_files(files[:2], WebAddress(url, token="secret-token", pause_s=0.0))
    assert [d.attempts for d in deliveries] == [2, 1]
    assert {authorization for _, authorization, _ in requests} == {"Bearer secret-token"}
    assert requests[0][2] == requests[2][2] > files[0].stat().st_size


def fail_one(body, reason):
    item = {"00081197": {"vr": "US", "Value": [reason]}}
    return {"00081198": {"vr": "SQ", "Value": [item]}}


@pytest.mark.parametrize(
    ("answer", "message", "attempts"),
    [
        (lambda n, body: (401, {}), "HTTP status 401", 1),
        (lambda n, body: (500, {}), "HTTP status 500", 2),
        (lambda n, body: (202, fail_one(body, 0xA900)), "reason 0xA900", 1),
        (lambda n, body: (202, fail_one(body, 0xA700)), "reason 0xA700", 2),
        (lambda n, body: (200, {}), "does not confirm", 1),
        (lambda n, body: (200, []), "not DICOMweb", 1),
        (lambda n, body: (200, {"00081199": 5}), "not DICOMweb", 1),
    ],
)
def test_a_web_server_that_refuses_is_not_believed(files, answer, message, attempts):
    def answer_first_well(number, body):
        return (200, confirm(body)) if number == 0 else answer(number, body)

    with web_peer(answer_first_well) as (url, _), pytest.raises(DeliveryError, match=message) as caught:
        store_files(files[:2], WebAddress(url, attempts=2, pause_s=0.0))
    assert [(d.stored, d.attempts) for d in caught.value.deliveries] == [(True, 1), (False, attempts)]


def test_a_web_server_that_is_silent_or_absent_ends_in_an_error(files):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DeliveryError, match=r"no answer \(.*Timeout"):
            store_files(files[:1], WebAddress(url, timeout_s=0.3, attempts=1))
    with pytest.raises(DeliveryError, match=r"no answer.*after 2 attempts"):
        store_files(files[:1], WebAddress(f"http://127.0.0.1:{find_port()}", attempts=2, pause_s=0.0))


def test_addresses_are_checked_and_hide_what_is_secret():
    for changes in ({"called_title": ""}, {"called_title": "x" * 17}, {"port": 0}, {"attempts": 0}, {"timeout_s": 0}):
        with pytest.raises(ValueError):
            DimseAddress(**{"host": "pacs", "port": 104, "called_title": "PACS", **changes})
    for arguments in ({"url": "ftp://x"}, {"url": "http://me:secret@x"}, {"url": "http://x", "user": "me"}):
        with pytest.raises(ValueError) as caught:
            WebAddress(**arguments)
        assert "secret" not in str(caught.value)
    assert "secret" not in repr(WebAddress("https://x", user="me", password="secret"))
    assert "secret" not in repr(WebAddress("https://x", token="secret"))


@pytest.mark.parametrize(
    ("package", "address"),
    [("pynetdicom", call(104)), ("dicomweb_client", WebAddress("http://127.0.0.1"))],
)
def test_missing_packages_are_named(files, monkeypatch, package, address):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"unary\[pacs\]"):
        store_files(files, address)


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
                DimseAddress("127.0.0.1", dimse_port, "ORTHANC", pause_s=0.0, timeout_s=10.0),
                WebAddress(f"{url}/dicom-web", user=USER, password=PASSWORD, pause_s=0.0, timeout_s=10.0),
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
        "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.11.1",
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
    store_files(files[:1], dimse)
    store_files(files[1:], dimse)
    forget_logs = caplog.text
    assert_equal(fetch_by_dimse(dimse, study), files)
    assert_equal(fetch_by_web(web, study), files)
    forget(web, study)
    caplog.clear()
    store_files(files, web)
    store_files(files[1:], web)  # again: the same identifiers, no copies
    said = forget_logs + caplog.text + "".join(capsys.readouterr())
    assert_equal(fetch_by_web(web, study), files)
    assert_equal(fetch_by_dimse(dimse, study), files)
    assert CANARY not in said
    assert study not in said
    assert "stored 6 of 6 files" in said


def test_a_pacs_that_does_not_know_us_refuses(orthanc, files):
    dimse, web = orthanc
    stranger = DimseAddress(dimse.host, dimse.port, "ORTHANC", calling_title="EVIL", attempts=1, timeout_s=10.0)
    with pytest.raises(DeliveryError) as caught:
        store_files(files, stranger)
    assert not any(delivery.stored for delivery in caught.value.deliveries)
    with pytest.raises(DeliveryError, match="HTTP status 401") as caught:
        store_files(files[:1], WebAddress(web.url, user=USER, password="wrong", pause_s=0.0))
    assert caught.value.deliveries[0].attempts == 1
