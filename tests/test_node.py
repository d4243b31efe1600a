"""A node in this process: images in by every way, results out, and what happens to bad input and bad callers."""

import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO

import numpy as np
import pydicom
import pynetdicom
import pytest
from nodes import associate, close_wires, configure, count, find_port, get, rename, store, stow, wait_for, write_study
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from unary.clinic.node.audit import check_audit
from unary.clinic.node.commitment import COMMITMENT, COMMITMENT_INSTANCE
from unary.clinic.node.config import Caller, Destination, DimseListener, Limits, Watch, WebListener
from unary.clinic.node.incoming import split_file
from unary.clinic.node.service import running_node
from unary.datasets.folder import read_result
from unary.errors import UnaryError
from unary.images.attributes import hash_uid
from unary.models.bundle import read_model
from unary.records import NOTICE

CANARY = "KANARIE"
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def model(model_folder):
    return read_model(model_folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return the paths of four views of one patient, whose name no log may hold."""
    return write_study(tmp_path_factory.mktemp("study"), CANARY)


@pytest.fixture(autouse=True)
def wires():
    """Close the senders' sockets."""
    yield
    close_wires()


@contextmanager
def start(model_folder, model, state, **changes):
    with running_node(configure(model_folder, state, **changes), model) as node:
        yield node


@contextmanager
def archive(answer=lambda _: 0x0000, port=0):
    """A PACS that keeps what it is sent; ``answer`` maps the number of a request to a status."""
    entity = pynetdicom.AE(ae_title="PACS")
    for offered in pynetdicom.StoragePresentationContexts:
        entity.add_supported_context(offered.abstract_syntax)
    received = []

    def handle(event):
        status = answer(len(received))
        if status == 0x0000:
            received.append(event.dataset)
        return status

    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(pynetdicom.evt.EVT_C_STORE, handle)])
    try:
        yield server.socket.getsockname()[1], received
    finally:
        server.shutdown()


def read_audit(node):
    return [json.loads(line) for line in (node.config.state / "audit.jsonl").read_text().splitlines()]


def list_events(node, *names):
    return [line for line in read_audit(node) if line["event"] in names]


def test_a_study_goes_round_and_no_patient_is_named_anywhere(model_folder, model, study, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    images = [pydicom.dcmread(path) for path in study]
    blank = rename(images[3], PixelData=bytes(len(images[3].PixelData)))
    with archive() as (port, received):
        destination = Destination("pacs", dimse=f"PACS@127.0.0.1:{port}")
        with start(model_folder, model, tmp_path / "state", destinations=(destination,)) as node:
            logging.getLogger("pynetdicom").handlers.clear()
            assert store(node.dimse_port, [*study[:2], blank]) == [0, 0, 0]
            answer = stow(node.web_port, study[2:])
            assert answer.status_code == 200
            assert len(answer.json()["00081199"]["Value"]) == 2
            wait_for(lambda: count(node, "sent") == 4 and count(node, "refused") == 1)
            (refused,) = node.state.query("SELECT * FROM objects WHERE state = 'refused'")
            assert refused["reason"] == "BLANK"
            assert store(node.dimse_port, study[:1]) == [0]  # again: no second work
            metrics, health = get(node.web_port, "/metrics").text, get(node.web_port, "/health").json()
            events = read_audit(node)
            results = node.store.results_folder(hash_uid(images[0].StudyInstanceUID))
    assert 'unary_node_objects{state="sent"} 4' in metrics
    assert 'unary_node_deliveries{destination="pacs",state="waiting"} 0' in metrics
    assert health["status"] == "ok"
    assert {each.StudyInstanceUID for each in received} == {images[0].StudyInstanceUID}
    assert len({each.SOPInstanceUID for each in received}) == len(received) >= 8
    folders = [path.parent for path in results.glob("*/result.json")]
    written = {pydicom.dcmread(path).SOPInstanceUID for path in results.glob("*/*.dcm")}
    assert written == {each.SOPInstanceUID for each in received}
    assert {read_result(folder)["file"] for folder in folders} == {f"{folder.name}.dcm" for folder in folders}
    examined = [each for each in events if each["event"] == "examined"]
    assert len(examined) == 4
    assert {each["model"] for each in examined} == {read_result(folders[0])["model"]["sha256"]}
    assert {each["operating_point"]["name"] for each in examined} == {"1"}
    assert {each["destination"] for each in events if each["event"] == "sent"} == {"pacs"}
    assert check_audit(tmp_path / "state" / "audit.jsonl").number >= len(events)
    said = caplog.text + metrics + json.dumps(health) + json.dumps(events) + "".join(capfd.readouterr())
    for secret in (CANARY, images[0].StudyInstanceUID, images[0].SOPInstanceUID, images[0].StudyDate):
        assert secret not in said
    for record in caplog.records:
        assert CANARY not in json.dumps(getattr(record, "about", {}))


def test_a_pacs_that_is_away_gets_everything_later_and_once(model_folder, model, study, tmp_path):
    port = find_port()
    destination = Destination("pacs", dimse=f"PACS@127.0.0.1:{port}", kinds=("report", "capture"))
    state = tmp_path / "state"
    with start(model_folder, model, state, destinations=(destination,)) as node:
        store(node.dimse_port, study[:2])
        wait_for(lambda: count(node, "done") == 2 and node.state.query("SELECT 1 FROM deliveries WHERE attempts > 1"))
        assert node.state.count_deliveries() in ({("pacs", "waiting"): 4}, {("pacs", "sending"): 4})
    with archive(lambda n: 0xA700 if n == 1 and not refusals.append(n) and len(refusals) < 3 else 0, port) as (_, got):
        refusals = []
        with start(model_folder, model, state, destinations=(destination,)) as node:
            wait_for(lambda: count(node, "sent") == 2)
            (row,) = node.state.query("SELECT COUNT(*), MIN(attempts) FROM deliveries WHERE state = 'sent'")
            assert row[0] == 4
        assert sorted(each.Modality for each in got) == ["OT", "OT", "SR", "SR"]
        assert len({each.SOPInstanceUID for each in got}) == 4
        with start(model_folder, model, state, destinations=(destination,)) as node:
            time.sleep(0.5)
        assert len(got) == 4


def test_what_was_being_sent_when_the_node_was_killed_goes_out_again_under_its_identifier(
    model_folder, model, study, tmp_path
):
    with archive() as (port, got):
        destination = Destination("pacs", dimse=f"PACS@127.0.0.1:{port}", kinds=("report",))
        with start(model_folder, model, tmp_path / "state", destinations=(destination,)) as node:
            store(node.dimse_port, study[:1])
            wait_for(lambda: count(node, "sent") == 1)
            node.state.change_delivery(1, "sending")  # as if the confirmation had not been written
            wait_for(lambda: len(got) == 2)
            wait_for(lambda: node.state.count_deliveries() == {("pacs", "sent"): 1})
    assert got[0] == got[1]


def test_what_is_refused_for_good_is_given_up_and_told(model_folder, model, study, tmp_path):
    with archive(lambda _: 0xC000) as (port, _):
        config = configure(model_folder, tmp_path / "state")
        destination = Destination("pacs", dimse=f"PACS@127.0.0.1:{port}", kinds=("report",))
        sending = replace(config.sending, refusals=2)
        with start(model_folder, model, tmp_path / "state", destinations=(destination,), sending=sending) as node:
            store(node.dimse_port, study[:1])
            wait_for(lambda: count(node, "failed") == 1)
            found = node.state.find_object(hash_uid(pydicom.dcmread(study[0]).SOPInstanceUID))
            assert (found.reason, found.detail) == ("NOT_DELIVERED", "refused with 0xC000, cannot be understood")
            (line,) = list_events(node, "not_delivered")
            assert line["destination"] == "pacs"
            assert node.state.query("SELECT attempts FROM deliveries")[0][0] == 2


# --- who is answered ------------------------------------------------------------------------------------------------


def test_only_listed_titles_and_addresses_are_answered_and_none_names_itself_in_a_log(
    model_folder, model, study, tmp_path
):
    callers = (Caller("TESTER", ("127.0.0.1",)), Caller("AWAY", ("127.0.0.2",)))
    with start(model_folder, model, tmp_path / "state", dimse=DimseListener(0, callers)) as node:
        dataset = pydicom.dcmread(study[0])
        for title, called, code in (("EVIL", "UNARY", 3), ("AWAY", "UNARY", 3), ("TESTER", "OTHER", 7)):
            link = associate(node.dimse_port, [dataset], title=title, called=called)
            assert link.is_rejected
            assert link.acceptor.primitive.diagnostic == code
        link = associate(node.dimse_port, [dataset])
        assert link.send_c_echo().Status == 0
        link.release()
        assert [line["reason"] for line in list_events(node, "association_rejected")] == ["TITLE", "ADDRESS", "TITLE"]
        assert count(node, "received") == 0
    with start(
        model_folder, model, tmp_path / "state", dimse=DimseListener(0, (Caller("TESTER", ("10.9.9.9",)),))
    ) as node:
        assert not associate(node.dimse_port, [dataset]).is_established
        assert len(list_events(node, "connection_refused")) == 1


def test_half_associations_hold_up_nobody(model_folder, model, study, tmp_path):
    listener = DimseListener(0, (Caller("TESTER", ("127.0.0.1",)),), answer_timeout_s=1.0)
    with start(model_folder, model, tmp_path / "state", dimse=listener, pause_s=60.0) as node:
        silent, torn, huge = (socket.create_connection(("127.0.0.1", node.dimse_port)) for _ in range(3))
        with silent, torn, huge:
            torn.sendall(b"\x01\x00\x00\x00\x40\x00\x00\x01")  # 16 kB announced, two bytes sent
            huge.sendall(b"\x01\x00\xff\xff\xff\xff" + bytes(100))  # four gigabytes announced
            assert store(node.dimse_port, study[:1]) == [0]
            huge.settimeout(5.0)
            assert huge.recv(100) in (b"",) or True
            link = associate(node.dimse_port, [pydicom.dcmread(study[1])])
            link.send_c_echo()
            link.dul.socket.socket.shutdown(socket.SHUT_RDWR)  # in the middle of everything
            for each in (silent, torn):
                each.settimeout(8.0)
                while each.recv(4096):
                    pass
        assert store(node.dimse_port, study[1:2]) == [0]
        assert count(node, "received") == 2


def test_objects_that_are_not_what_they_say_are_refused_with_a_status(
    model_folder, model, study, tmp_path, monkeypatch
):
    with start(model_folder, model, tmp_path / "state", limits=Limits(object_mib=1.0), pause_s=60.0) as node:
        with monkeypatch.context() as patch:  # what is sent is not in the syntax that was agreed on
            _, explicit = split_file(memoryview(study[0].read_bytes()))
            patch.setattr("pynetdicom.association.encode", lambda *_, **__: bytes(explicit))
            implicit = BytesIO()
            dataset = pydicom.dcmread(study[0])
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
            dataset.save_as(implicit, enforce_file_format=True, implicit_vr=True, little_endian=True)
            dataset = pydicom.dcmread(BytesIO(implicit.getvalue()))
            assert store(node.dimse_port, [dataset]) == [0xC000]
        other = rename(pydicom.dcmread(study[0]))
        other.file_meta.MediaStorageSOPInstanceUID = other.SOPInstanceUID
        assert store(node.dimse_port, [other, rename(other, SOPInstanceUID=other.SOPInstanceUID)]) == [0, 0]
        changed = rename(other, SOPInstanceUID=other.SOPInstanceUID)
        changed.PixelData = (changed.pixel_array + np.uint16(1)).tobytes()
        assert store(node.dimse_port, [changed]) == [0x0111]
        large = rename(other, PixelData=bytes(3 * 2**20), Rows=1024, Columns=1536)
        link = associate(node.dimse_port, [large])
        assert link.send_c_store(large).get("Status") is None  # broken off before it is in memory
        assert count(node, "received") == 1
        assert stow(node.web_port, [b"no DICOM" * 100, study[1]]).status_code == 202
        assert stow(node.web_port, [study[1].read_bytes() + bytes(2 * 2**20)]).status_code == 413
        assert stow(node.web_port, [study[2]], path="/dicomweb/studies/1.2.3").status_code == 409
        deflated = study[2].read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0", 1)
        assert stow(node.web_port, [deflated]).json()["00081198"]["Value"][0]["00081197"]["Value"] == [0xC122]
        assert stow(node.web_port, [study[2]], headers={"Content-Type": "text/plain"}).status_code == 400
        assert count(node, "received") == 2


def test_a_full_disk_is_told_as_out_of_resources_by_every_way(model_folder, model, study, tmp_path):
    with start(model_folder, model, tmp_path / "state", limits=Limits(free_gib=1e9)) as node:
        assert store(node.dimse_port, study[:1]) == [0xA700]
        assert stow(node.web_port, study[:1]).status_code == 503
        assert get(node.web_port, "/health").status_code == 503
        assert get(node.web_port, "/health").json()["parts"]["disk"] is False
        assert sum(node.state.count_objects().values()) == 0


def test_the_web_asks_for_its_token_but_for_health(model_folder, model, study, tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_TOKEN", TOKEN)
    web = WebListener(0, token_variable="NODE_TOKEN")
    with start(model_folder, model, tmp_path / "state", web=web, pause_s=60.0) as node:
        assert get(node.web_port, "/health").status_code == 200
        assert get(node.web_port, "/metrics").status_code == 401
        assert stow(node.web_port, study[:1], headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert get(node.web_port, "/metrics", Authorization=f"Bearer {TOKEN}").status_code == 200
        assert stow(node.web_port, study[:1], headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert count(node, "received") == 1
        assert get(node.web_port, "/review/").status_code == 401
        assert get(node.web_port, "/review/", Authorization=f"Bearer {TOKEN}").status_code == 200
        assert get(node.web_port, "/monitor/").status_code == 401
        nothing = get(node.web_port, "/monitor/", Authorization=f"Bearer {TOKEN}")
        assert nothing.status_code == 200
        assert "Nothing to report yet" in nothing.text


def test_the_web_answers_to_its_own_name_and_to_no_foreign_page(model_folder, model, study, tmp_path):
    with start(model_folder, model, tmp_path / "state", pause_s=60.0) as node:
        assert get(node.web_port, "/metrics", Host="evil.example").status_code == 421
        assert get(node.web_port, "/health", Host="[evil").status_code in (400, 421)
        assert get(node.web_port, "/metrics", **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert stow(node.web_port, study[:1], headers={"Origin": "http://evil.example"}).status_code == 403
        assert get(node.web_port, "/review/").status_code == 200
        assert get(node.web_port, "/nothing").status_code == 404


def test_findings_are_seen_on_the_pages(model_folder, model, study, tmp_path):
    with start(model_folder, model, tmp_path / "state") as node:
        store(node.dimse_port, study)
        wait_for(lambda: count(node, "done") == 4)
        (found,) = wait_for(lambda: get(node.web_port, "/review/api/studies").json()["studies"])
        assert len(found["images"]) == 4
        report, months = (get(node.web_port, f"/monitor/{name}") for name in ("", "months.csv"))
        assert report.headers["content-type"].startswith("text/html")
        assert NOTICE in report.text
        assert "'unsafe-inline'" in report.headers["content-security-policy"]
        assert "4" in months.text.splitlines()[1].split(",")
        assert get(node.web_port, "/monitor/..%2Fnode.sqlite").status_code == 404


def test_dimse_over_tls_asks_for_a_certificate(model_folder, model, study, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*words, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    callers = (Caller("TESTER", ("127.0.0.1",)),)
    listener = DimseListener(0, callers, certificate=certificate, key=key, client_ca=certificate, answer_timeout_s=2.0)
    with start(model_folder, model, tmp_path / "state", dimse=listener, web=None, pause_s=60.0) as node:
        plain = socket.create_connection(("127.0.0.1", node.dimse_port))  # never shakes hands
        statuses = []
        for shown in (False, True):
            context = ssl.create_default_context(cafile=certificate)
            context.check_hostname = False
            if shown:
                context.load_cert_chain(certificate, key)
            entity = pynetdicom.AE(ae_title="TESTER")
            entity.acse_timeout = 5
            dataset = pydicom.dcmread(study[0])
            entity.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
            link = entity.associate("127.0.0.1", node.dimse_port, ae_title="UNARY", tls_args=(context, None))
            statuses.append(link.send_c_store(dataset).Status if link.is_established else None)
            if link.is_established:
                link.release()
        plain.close()
        assert statuses == [None, 0]
        assert not associate(node.dimse_port, [dataset]).is_established


# --- complete, and stopped ------------------------------------------------------------------------------------------


def ask_for_commitment(link, datasets):
    asked = Dataset()
    asked.TransactionUID, asked.ReferencedSOPSequence = "1.2.3.4.5", []
    for dataset in datasets:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
        asked.ReferencedSOPSequence.append(item)
    return link.send_n_action(asked, 1, COMMITMENT, COMMITMENT_INSTANCE)[0].Status


@pytest.mark.parametrize("by_call", [False, True])
def test_commitment_is_answered_and_completes_a_study_at_once(model_folder, model, study, tmp_path, by_call):
    reports, arrived = [], threading.Event()

    def handle(event):
        reports.append((event.event_type, event.event_information))
        arrived.set()
        return 0x0000, None

    handlers = [(pynetdicom.evt.EVT_N_EVENT_REPORT, handle)]
    listening = pynetdicom.AE(ae_title="TESTER")
    listening.add_supported_context(COMMITMENT, scu_role=True, scp_role=True)
    server = listening.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    port = server.socket.getsockname()[1] if by_call else None
    dimse = DimseListener(0, (Caller("TESTER", ("127.0.0.1",), port),))
    present, absent = pydicom.dcmread(study[0]), pydicom.dcmread(study[1])
    try:
        with start(model_folder, model, tmp_path / "state", dimse=dimse, pause_s=3600.0) as node:
            store(node.dimse_port, [present])
            entity = pynetdicom.AE(ae_title="TESTER")
            entity.add_requested_context(COMMITMENT)
            link = entity.associate("127.0.0.1", node.dimse_port, ae_title="UNARY", evt_handlers=handlers)
            assert ask_for_commitment(link, [present, absent]) == 0
            assert arrived.wait(10)
            link.release()
            wait_for(lambda: count(node, "done") == 1)
            wait_for(lambda: list_events(node, "commitment_answered"))
    finally:
        server.shutdown()
    check_audit(tmp_path / "state" / "audit.jsonl")
    ((kind, report),) = reports
    assert (kind, report.TransactionUID) == (2, "1.2.3.4.5")
    assert [item.ReferencedSOPInstanceUID for item in report.ReferencedSOPSequence] == [present.SOPInstanceUID]
    (failed,) = report.FailedSOPSequence
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (absent.SOPInstanceUID, 0x0112)


def test_a_watched_folder_is_emptied_into_the_node(model_folder, model, study, tmp_path):
    inbox = tmp_path / "inbox"
    (inbox / "sub").mkdir(parents=True)
    (inbox / "sub" / "a.dcm").write_bytes(study[0].read_bytes())
    (inbox / "b.dcm").write_bytes(study[1].read_bytes())
    (inbox / "notes.txt").write_text(CANARY)
    (inbox / ".hidden").write_bytes(study[2].read_bytes())
    (inbox / "link").symlink_to(study[2])
    watch = Watch(inbox, settle_s=0.2)
    with start(model_folder, model, tmp_path / "state", dimse=None, web=None, watch=watch) as node:
        growing = (inbox / "growing.dcm").open("wb")
        content = study[3].read_bytes()
        for piece in range(0, len(content), len(content) // 8):
            growing.write(content[piece : piece + len(content) // 8])
            growing.flush()
            time.sleep(0.05)
        growing.close()
        wait_for(lambda: count(node, "done") == 3)
    assert sorted(path.name for path in (inbox / "taken").iterdir()) == ["a.dcm", "b.dcm", "growing.dcm"]
    assert sorted(path.name for path in (inbox / "refused").iterdir()) == ["notes.txt", "notes.txt.txt"]
    assert "NOT_READABLE" in (inbox / "refused" / "notes.txt.txt").read_text()
    assert (inbox / "link").is_symlink()
    assert (inbox / ".hidden").exists()


def test_images_that_come_late_join_their_study(model_folder, model, study, tmp_path):
    with start(model_folder, model, tmp_path / "state") as node:
        store(node.dimse_port, study[:2])
        wait_for(lambda: count(node, "done") == 2)
        results = node.store.results_folder(hash_uid(pydicom.dcmread(study[0]).StudyInstanceUID))
        before = {path: path.read_bytes() for path in results.glob("*/*.dcm") if path.with_name("result.json").exists()}
        store(node.dimse_port, study[2:])
        wait_for(lambda: count(node, "done") == 4)
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(results.glob("*/result.json"))) == 4


def test_what_was_running_when_the_node_was_killed_has_the_same_identifiers(model_folder, model, study, tmp_path):
    with start(model_folder, model, tmp_path / "state") as node:
        store(node.dimse_port, study[:1])
        wait_for(lambda: count(node, "done") == 1)
        name = hash_uid(pydicom.dcmread(study[0]).SOPInstanceUID)
        folder = node.store.results_folder(node.state.find_object(name).study) / name
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with node.state.transaction() as db:  # as a kill in the middle of the work leaves it
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
            db.execute("UPDATE runs SET ended = NULL")
            node.state.change([name], "running")
        node.wake.set()
        wait_for(lambda: count(node, "done") == 1)
        time.sleep(0.1)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_failure_that_may_pass_is_tried_again_and_no_image_takes_others_down(
    model_folder, model, study, tmp_path, monkeypatch
):
    monkeypatch.setattr("unary.clinic.node.working._PAUSE_S", 0.1)
    name = hash_uid(pydicom.dcmread(study[0]).SOPInstanceUID)
    with start(model_folder, model, tmp_path / "state", pause_s=0.1) as node:
        real, tried = node.worker._examine, []

        def examine(study_name, chosen, moment):
            tried.append([each.object for each in chosen])
            if name in tried[-1]:
                raise RuntimeError(CANARY)
            return real(study_name, chosen, moment)

        node.worker._examine = examine
        store(node.dimse_port, study[:2])
        wait_for(lambda: count(node, "done") == 1 and [name] in tried)
    assert sorted(map(len, tried))[-1] == 2
    assert [name] in tried  # alone in the end


def test_a_second_node_on_the_same_state_is_refused(model_folder, model, tmp_path):
    with (
        start(model_folder, model, tmp_path / "state"),
        pytest.raises(UnaryError, match="in use by another process"),
        start(model_folder, model, tmp_path / "state"),
    ):
        pass


def test_sigterm_finishes_the_image_under_way_and_nothing_is_lost(model_folder, study, tmp_path):
    port = find_port()
    config = tmp_path / "NODE.toml"
    config.write_text(
        f'model = "{model_folder}"\nstate = "state"\npause_s = 0.2\n[dimse]\nport = {port}\n'
        '[[dimse.callers]]\ntitle = "TESTER"\naddresses = ["127.0.0.1"]\n'
    )
    command = [sys.executable, "-m", "unary.cli", "serve", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    checked = subprocess.run([*command, "--check"], capture_output=True, text=True, env=environment, check=True)
    assert "nothing is wrong with it" in checked.stdout
    lines = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:

        def read_until(event):
            for line in process.stderr:
                lines.append(json.loads(line))
                if lines[-1]["event"] == event:
                    return

        read_until("started")
        assert store(port, study) == [0, 0, 0, 0]
        read_until("complete")
        process.send_signal(signal.SIGTERM)
        read_until("")
        code = process.wait(timeout=60)
    assert code == 0
    assert [line["event"] for line in lines][-1] == "stopped"
    assert CANARY not in json.dumps(lines)
    with running_node(configure(model_folder, tmp_path / "state")) as node:
        wait_for(lambda: count(node, "done") == 4)


def test_a_signal_that_another_thread_receives_ends_a_node_too():
    script = """
import contextlib, signal, threading, time
from unary.clinic.node import service

@contextlib.contextmanager
def running(config):
    def send():
        time.sleep(0.3)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    threading.Thread(target=send).start()
    yield

service.running_node = running
service.serve_until_told(None)
print("ended")
"""
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "ended\n"
