"""A node for tests: its configuration, senders over DIMSE and STOW, and waiting for what happens in its threads."""

import socket
import time
import uuid
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pydicom
import pynetdicom
from pydicom.uid import generate_uid

from unary.clinic.node.config import Caller, DimseListener, NodeConfig, Sending, WebListener
from unary.datasets.phantom import PhantomConfig, build_phantom, write_phantom

WIRES = []
VIEWS = (("R", "CC"), ("L", "CC"), ("R", "MLO"), ("L", "MLO"))


def write_study(folder: Path, patient: str, *, rows: int = 256, cols: int = 192, seed: int = 8) -> list[Path]:
    """Write the four views of a phantom patient, one study."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for side, view in VIEWS:
        phantom = build_phantom(PhantomConfig(rows=rows, cols=cols), rng=rng, view=view, laterality=side)
        paths.append(folder / f"{side}{view}.dcm")
        write_phantom(phantom, paths[-1], image_id=f"{side}{view}", patient_id=patient, seed=seed)
    return paths


def find_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def configure(model: Path, state: Path, **changes) -> NodeConfig:
    """Return the configuration of a node on the loopback that takes images from TESTER at once."""
    fields = {
        "pause_s": 0.3,
        "dimse": DimseListener(0, (Caller("TESTER", ("127.0.0.1",)),), answer_timeout_s=5.0),
        "web": WebListener(0),
        "sending": Sending(first_pause_s=0.1, longest_pause_s=0.3, connect_timeout_s=2.0, answer_timeout_s=5.0),
        "maps": False,
        **changes,
    }
    return NodeConfig(model, state, **fields)


def associate(port: int, datasets, *, title: str = "TESTER", called: str = "UNARY"):
    """Ask for an association that can carry these."""
    entity = pynetdicom.AE(ae_title=title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 10
    entity.add_requested_context(pynetdicom.sop_class.Verification)
    entity.add_requested_context("1.2.840.10008.1.20.1")
    for pair in dict.fromkeys((d.file_meta.MediaStorageSOPClassUID, d.file_meta.TransferSyntaxUID) for d in datasets):
        entity.add_requested_context(*pair)
    link = entity.associate("127.0.0.1", port, ae_title=called)
    if link.dul.socket is not None and link.dul.socket.socket is not None:
        WIRES.append(link.dul.socket.socket)
    return link


def close_wires() -> None:
    """Close what pynetdicom leaves open where the peer was the first to close it."""
    while WIRES:
        WIRES.pop().close()


def store(port: int, paths, **options) -> list[int]:
    """Send files or data sets by C-STORE over one association; return the statuses."""
    datasets = [path if isinstance(path, pydicom.Dataset) else pydicom.dcmread(path) for path in paths]
    link = associate(port, datasets, **options)
    assert link.is_established
    statuses = [link.send_c_store(dataset).get("Status") for dataset in datasets]
    link.release()
    return statuses


def stow(port: int, contents, *, headers=None, path: str = "/dicomweb/studies") -> httpx.Response:
    """Send files by STOW-RS in one request."""
    boundary = uuid.uuid4().hex
    parts = [content if isinstance(content, bytes) else Path(content).read_bytes() for content in contents]
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    with httpx.Client(trust_env=False) as client:
        return client.post(
            f"http://127.0.0.1:{port}{path}", content=body, headers={"Content-Type": kind, **(headers or {})}
        )


def get(port: int, path: str, **headers) -> httpx.Response:
    """Ask the node for something."""
    with httpx.Client(trust_env=False) as client:
        return client.get(f"http://127.0.0.1:{port}{path}", headers=headers)


def rename(dataset: pydicom.Dataset, **changes) -> pydicom.Dataset:
    """Return a copy that is an object of its own, or has the changes given."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    copied = pydicom.dcmread(buffer)
    copied.SOPInstanceUID = changes.pop("SOPInstanceUID", None) or generate_uid()
    copied.file_meta.MediaStorageSOPInstanceUID = copied.SOPInstanceUID
    for name, value in changes.items():
        setattr(copied, name, value)
    return copied


def wait_for(condition, timeout_s: float = 150.0):
    """Wait until something holds; return it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s:g} s")


def count(node, *states) -> int:
    """How many objects are in some states."""
    counts = node.state.count_objects()
    return sum(counts.get(each, 0) for each in states)
