"""`make hospital`: a PACS, a node and its page on phantoms."""

import importlib
import json
import socket
import sys
import urllib.request
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from test_outputs_dicom import find_errors

pytestmark = pytest.mark.slow

DEPLOY = Path(__file__).parents[1] / "deploy"


@pytest.fixture(scope="module")
def hospital():
    """Return the script as a module."""
    sys.path.insert(0, str(DEPLOY))
    yield importlib.import_module("hospital")
    sys.path.remove(str(DEPLOY))


def find_ports(hospital):
    probes = [socket.socket() for _ in range(5)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = hospital.Ports(*(probe.getsockname()[1] for probe in probes))
    for probe in probes:
        probe.close()
    return ports


def ask(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=30) as answer:
        return answer.read()


def list_listening():
    """Return (address, port) of everything that listens here, by the system's own table."""
    found = set()
    for table, width in (("tcp", 8), ("tcp6", 32)):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            place, state = line.split()[1], line.split()[3]
            if state == "0A":
                found.add((place[:width], int(place.rsplit(":", 1)[1], 16)))
    return found


def test_four_views_come_back_with_findings_and_with_the_objects_of_their_study(hospital, tmp_path):
    if not hospital.pacs.ORTHANC.exists():
        pytest.skip(f"{hospital.pacs.ORTHANC} is missing: apt-get install orthanc")
    if hospital.pacs.find_separation() is None:
        pytest.skip("no network of its own is allowed here, and without one Orthanc listens on every interface")
    ports = find_ports(hospital)
    with hospital.opening(tmp_path, ports, size=(384, 320)) as lines:
        own = {place for place in list_listening() if place[1] in ports.list_all()}
        assert {place[0] for place in own} == {"0100007F"}, "loopback alone"
        pacs = f"http://127.0.0.1:{ports.pacs_web}"
        (study,) = json.loads(ask(f"{pacs}/studies"))
        came = {}
        for instance in json.loads(ask(f"{pacs}/studies/{study}/instances")):
            dataset = pydicom.dcmread(BytesIO(ask(f"{pacs}/instances/{instance['ID']}/file")))
            came[str(dataset.SOPInstanceUID)] = dataset
        page = next(line.split()[2] for line in lines if line.startswith("review page"))
        assert b"not for diagnosis" in ask(page).lower()
    results = [path for path in (tmp_path / "state" / "studies").rglob("*.dcm") if "results" in path.parts]
    sent = {str(dataset.SOPInstanceUID): dataset for dataset in map(pydicom.dcmread, results)}
    assert len(sent) >= 4 + 4 + 2
    assert len(came) == 4 + len(sent)
    for uid, dataset in sent.items():
        assert came[uid].to_json_dict() == dataset.to_json_dict()
        assert came[uid].get("PixelData") == dataset.get("PixelData")
    (report,) = [path for path in results if path.stem == "cad_report"]
    assert find_errors(report) == []
    assert pydicom.dcmread(report).SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.50"
    text = "\n".join(lines)
    for words in (
        "unary CAD report",
        "unary study summary",
        "unary findings: RCC:",
        str(ports.node_web),
        "Not for diag",
    ):
        assert words in text
    assert "EVERY interface" not in text
    assert not [place for place in list_listening() if place[1] in ports.list_all()], "all is closed"


def test_without_orthanc_the_message_says_how_to_get_it(hospital, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hospital.pacs, "ORTHANC", tmp_path / "Orthanc")
    assert hospital.main(["--folder", str(tmp_path / "state"), "--once"]) == 2
    assert "apt-get install orthanc" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_a_port_in_use_is_named(hospital, tmp_path, monkeypatch):
    monkeypatch.setattr(hospital.pacs, "ORTHANC", Path(__file__))
    ports = find_ports(hospital)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports.node_web))
        taken.listen()
        with pytest.raises(hospital.HospitalError, match=f"port {ports.node_web} is in use"):
            hospital.opening(tmp_path, ports).__enter__()


def test_the_pacs_serves_this_machine_and_known_applications_alone(hospital, tmp_path):
    settings = hospital.pacs.configure_pacs(tmp_path, hospital.Ports())
    assert settings["RemoteAccessAllowed"] is False
    assert settings["DicomAlwaysAllowStore"] is False
    assert settings["DicomCheckModalityHost"] is True
    assert {each["Host"] for each in settings["DicomModalities"].values()} == {"127.0.0.1"}
