"""A node and a real PACS (Orthanc): four views go to the node, and the findings come back into their study."""

import json
import logging
import subprocess
import urllib.request

import pydicom
import pytest
from nodes import configure, count, find_port, get, stow, wait_for, write_study
from test_pacs import ORTHANC, PASSWORD, PLUGIN, USER, private_network, wait_until_it_answers
from test_pacs import configure as configure_orthanc

from unary.clinic.node.config import Caller, Destination, DimseListener
from unary.clinic.node.service import running_node
from unary.clinic.pacs import store_files
from unary.clinic.pacs_address import DimseAddress, Patience
from unary.clinic.pacs_files import read_parcel
from unary.models.bundle import read_model, write_model
from unary.models.fitting import FitConfig, fit


class Pacs:
    """Orthanc, started and stopped; what it holds stays in its folder."""

    def __init__(self, folder, node_port):
        self.folder, self.web_port, self.dimse_port = folder, find_port(), find_port()
        (folder / "db").mkdir()
        settings = configure_orthanc(folder, web_port=self.web_port, dimse_port=self.dimse_port, reader_port=1)
        settings["DicomModalities"]["node"] = {"AET": "UNARY", "Host": "127.0.0.1", "Port": node_port}
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.url, self.process = f"http://127.0.0.1:{self.web_port}", None

    def start(self):
        with (self.folder / "log").open("a") as log:
            command = [ORTHANC, self.folder / "orthanc.json"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        wait_until_it_answers(self.process, self.url, self.folder / "log")

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def ask(self, path, content=None):
        passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
        passwords.add_password(None, self.url, USER, PASSWORD, is_authenticated=True)
        handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPBasicAuthHandler(passwords))
        data = None if content is None else json.dumps(content).encode()
        with urllib.request.build_opener(*handlers).open(f"{self.url}{path}", data, timeout=30) as answer:
            return json.load(answer)

    def list_instances(self):
        """Study, modality and UID of every object."""
        found = []
        for each in self.ask("/instances"):
            tags = self.ask(f"/instances/{each}/simplified-tags")
            found.append((tags["StudyInstanceUID"], tags["Modality"], tags["SOPInstanceUID"]))
        return sorted(found)


@pytest.fixture
def pacs(tmp_path):
    """Return a PACS that is not started yet, and the port on which it expects the node."""
    for needed in (ORTHANC, PLUGIN):
        if not needed.exists():
            pytest.skip(f"{needed} is missing: apt-get install orthanc orthanc-dicomweb")
    folder = tmp_path / "orthanc"
    folder.mkdir()
    with private_network() as refusal:
        if refusal is not None:
            logging.getLogger(__name__).info("no network of its own (%s): Orthanc listens on every interface", refusal)
        node_port = find_port()
        found = Pacs(folder, node_port)
        try:
            yield found, node_port
        finally:
            found.stop()


def test_four_views_go_to_the_node_and_findings_come_back_also_to_a_pacs_that_was_away(
    pacs, normals, tmp_path, monkeypatch
):
    pacs, node_port = pacs
    model_folder = tmp_path / "model"
    write_model(fit(normals, FitConfig(held_out=0.5), detector="laplacian", progress=False), model_folder)
    by_dimse, by_web = write_study(tmp_path / "a", "FIRST"), write_study(tmp_path / "b", "SECOND", seed=9)
    config = configure(
        model_folder,
        tmp_path / "state",
        dimse=DimseListener(node_port, (Caller("ORTHANC", ("127.0.0.1",)),)),
        destinations=(
            Destination(
                "by_dimse",
                dimse=f"ORTHANC@127.0.0.1:{pacs.dimse_port}",
                kinds=("report", "capture", "cad_report", "study_summary"),
            ),
            Destination(
                "by_web", web=f"{pacs.url}/dicom-web", user=USER, password_variable="PASSWORD", kinds=("segmentation",)
            ),
        ),
    )
    studies = [str(pydicom.dcmread(paths[0]).StudyInstanceUID) for paths in (by_dimse, by_web)]
    pacs.start()
    to_pacs = DimseAddress("127.0.0.1", pacs.dimse_port, "ORTHANC")
    delivered = store_files([read_parcel(path) for path in (*by_dimse, *by_web)], to_pacs, Patience(), progress=False)
    assert all(each.stored for each in delivered)
    monkeypatch.setenv("PASSWORD", PASSWORD)
    with running_node(config, read_model(model_folder)) as node:
        assert pacs.ask("/modalities/node/echo", {}) == {}
        (first,) = pacs.ask("/tools/find", {"Level": "Study", "Query": {"StudyInstanceUID": studies[0]}})
        told = pacs.ask("/modalities/node/store", first)
        assert (told["InstancesCount"], told["FailedInstancesCount"]) == (4, 0)
        wait_for(lambda: count(node, "sent") == 4)
        pacs.stop()
        assert stow(node.web_port, by_web).status_code == 200
        wait_for(lambda: count(node, "done") == 4)
        wait_for(lambda: node.state.query("SELECT 1 FROM deliveries WHERE state != 'sent' AND attempts > 2"))
        assert get(node.web_port, "/health").json()["status"] == "ok"
        pacs.start()
        wait_for(lambda: count(node, "sent") == 8)
        wait_for(lambda: not node.state.query("SELECT 1 FROM deliveries WHERE state != 'sent'"))
        held = pacs.list_instances()
        told = pacs.ask("/modalities/node/store", first)  # results and all, back to the node: nothing goes round
        assert told["FailedInstancesCount"] == 0
        assert count(node, "sent") == 8 == sum(node.state.count_objects().values())
        assert pacs.list_instances() == held
    results = sorted((tmp_path / "state" / "studies").glob("*/results/*/*.dcm"))
    written = [pydicom.dcmread(path, stop_before_pixels=True) for path in results]
    images = [pydicom.dcmread(path, stop_before_pixels=True) for path in (*by_dimse, *by_web)]
    wanted = [(str(each.StudyInstanceUID), str(each.Modality), str(each.SOPInstanceUID)) for each in images + written]
    assert held == sorted(wanted)
    assert {study for study, kind, _ in held if kind == "SR"} == set(studies)
    assert sum(kind == "SR" for _, kind, _ in held) == 12, "one of each image, two of each study"
