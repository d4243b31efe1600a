"""A node under load, and killed: nothing is lost, nothing is doubled, and a C-STORE is answered in time.

    python benchmarks/node_load.py load --images 1000 --senders 4
    python benchmarks/node_load.py kills --kills 50

``load`` starts a node in a process of its own and sends it small phantoms (the model is the Laplacian, which
learns nothing: the load on receiving is the same, that on the processor is not that of the default model) from several
senders at once, each over its own association, while the node examines and delivers to a PACS made here. It measures
each answer to C-STORE at the sender, and the node's memory. ``kills`` sends the images again and again to a node that
is killed (SIGKILL) after a random time and started again; a sender repeats what was not confirmed, and nothing else. In
the end every image that was confirmed must be examined and the PACS must hold every result, each with one content.
Prints a table and, last, one JSON line; ends with 1 unless all is right.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import tempfile
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pynetdicom
from batch_failures import write_small_model
from pydicom.uid import generate_uid

from unary.clinic.batch_detection import detect_files
from unary.clinic.node.audit import check_audit
from unary.clinic.node.config import NodeConfig, read_config
from unary.clinic.node.logs import logging_as_json
from unary.clinic.node.service import running_node
from unary.clinic.node.state import NodeState
from unary.models.bundle import Model, read_model

NODE = """
model = "{model}"
state = "{state}"
pause_s = {pause_s}
maps = false

[dimse]
port = {port}
[[dimse.callers]]
title = "SENDER"
addresses = ["127.0.0.1"]

[web]
port = {web_port}

[limits]
free_gib = 0.1

[sending]
first_pause_s = 0.2
longest_pause_s = 2

[destinations.pacs]
dimse = "PACS@127.0.0.1:{pacs_port}"
kinds = ["report", "capture"]
"""


class Archive:
    """A PACS that notes the hash of every object by its UID."""

    def __init__(self, port: int) -> None:
        self.held: dict[str, set[str]] = {}
        self.received = 0
        entity = pynetdicom.AE(ae_title="PACS")
        for offered in pynetdicom.StoragePresentationContexts:
            entity.add_supported_context(offered.abstract_syntax)
        handlers = [(pynetdicom.evt.EVT_C_STORE, self._keep)]
        self._server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)

    def close(self) -> None:
        self._server.shutdown()

    def _keep(self, event) -> int:
        content = hashlib.sha256(event.request.DataSet.getbuffer()).hexdigest()
        self.held.setdefault(str(event.request.AffectedSOPInstanceUID), set()).add(content)
        self.received += 1
        return 0x0000


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_images(sound: list[Path], count: int, per_study: int) -> list[pydicom.Dataset]:
    """Copies of a few phantoms, each an object of its own, so many in a study."""
    contents = [path.read_bytes() for path in sound]
    images = []
    for number in range(count):
        dataset = pydicom.dcmread(BytesIO(contents[number % len(contents)]))
        study = generate_uid(entropy_srcs=["study", str(number // per_study)])
        dataset.StudyInstanceUID = study
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=["image", str(number)])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        images.append(dataset)
    return images


class Service:
    """A node in a process of its own, started and ended as often as one likes.

    It is forked from a process that has imported everything and read the model, so that kills fall into the work and
    not into imports, and which has no threads of its own.
    """

    def __init__(self, folder: Path, model: Path, pacs_port: int, pause_s: float) -> None:
        self.port, self.web_port, self.state = find_port(), find_port(), folder / "state"
        self.config, self.pid = folder / "NODE.toml", 0
        ports = {"port": self.port, "web_port": self.web_port, "pacs_port": pacs_port}
        self.config.write_text(NODE.format(model=model, state=self.state, pause_s=pause_s, **ports))
        (folder / "warm").mkdir()
        (folder / "warm" / "image.dcm").write_bytes(next((folder / "phantoms").rglob("*.dcm")).read_bytes())
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        if os.fork() == 0:
            os.close(self._orders)
            _launch(orders, answers, self.config, folder / "log")
        os.close(orders)
        os.close(answers)

    def start(self) -> None:
        os.write(self._orders, b"+")
        self.pid = int(os.read(self._answers, 20))

    def close(self) -> None:
        os.close(self._orders)
        os.close(self._answers)

    @property
    def is_alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def wait_until_it_listens(self, timeout_s: float = 60.0) -> bool:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.is_alive:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return True
            except OSError:
                time.sleep(0.05)
        return False

    def end(self, how: signal.Signals) -> None:
        os.kill(self.pid, how)
        while self.is_alive:
            time.sleep(0.01)

    def read_memory_mib(self) -> float:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1024


def _launch(orders: int, answers: int, path: Path, log: Path) -> None:
    """Start a node at every order, until there are none any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that what has ended is gone
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    config = read_config(path)
    model = read_model(config.model)
    warm = path.parent / "warm"
    detect_files(model, sorted(warm.glob("*.dcm")), warm / "out", model_folder=config.model, progress=False)
    while os.read(orders, 1):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _run(config, model)
        os.write(answers, str(child).encode())
    os._exit(0)


def _run(config: NodeConfig, model: Model) -> None:
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    with logging_as_json(), running_node(config, model):
        told.wait()
    os._exit(0)


def send(port: int, images: list[pydicom.Dataset], confirmed: dict[str, int], times: list[float]) -> None:
    """Send what is not confirmed yet over one association; stop at the first that is not."""
    waiting = [image for image in images if image.SOPInstanceUID not in confirmed]
    if not waiting:
        return
    entity = pynetdicom.AE(ae_title="SENDER")
    entity.acse_timeout = entity.connection_timeout = 30
    entity.dimse_timeout = entity.network_timeout = 30
    entity.add_requested_context(waiting[0].SOPClassUID, waiting[0].file_meta.TransferSyntaxUID)
    link = entity.associate("127.0.0.1", port, ae_title="UNARY")
    for image in waiting:
        if not link.is_established:
            break
        begun = time.monotonic()
        try:
            status = link.send_c_store(image).get("Status")
        except (RuntimeError, ValueError, AttributeError):  # the association ended meanwhile
            break
        if status == 0x0000:
            times.append(time.monotonic() - begun)
            confirmed[str(image.SOPInstanceUID)] = confirmed.get(str(image.SOPInstanceUID), 0) + 1
        elif status is None:
            break
    if link.is_established:
        link.release()


def read_books(service: Service) -> dict[str, object]:
    """What the books say in the end, and what the audit log counts."""
    state = NodeState(service.state / "node.sqlite")
    states = state.count_objects()
    deliveries = {f"{name}": number for (_, name), number in state.count_deliveries().items()}
    objects = {row["object"] for row in state.query("SELECT object FROM objects")}
    state.close()
    lines = check_audit(service.state / "audit.jsonl").number
    examined = [
        json.loads(line)["object"]
        for line in (service.state / "audit.jsonl").read_text().splitlines()
        if '"event": "examined"' in line
    ]
    return {"states": states, "deliveries": deliveries, "objects": objects, "audit_lines": lines, "examined": examined}


def wait_until_all_is_sent(service: Service, count: int, timeout_s: float, memory: list[float]) -> bool:
    deadline = time.monotonic() + timeout_s
    reading = NodeState(service.state / "node.sqlite")
    try:
        while time.monotonic() < deadline:
            memory.append(service.read_memory_mib())
            if reading.count_objects().get("sent", 0) >= count:
                return True
            time.sleep(0.5)
        return False
    finally:
        reading._connection.close()


def find_faults(books: dict[str, object], images: list[pydicom.Dataset], archive: Archive, results: Path) -> list[str]:
    """What is lost or doubled."""
    wanted = {hashlib.sha256(str(image.SOPInstanceUID).encode()).hexdigest()[:16] for image in images}
    faults = []
    if books["objects"] != wanted:
        faults.append(f"{len(wanted - books['objects'])} images lost")
    if books["states"] != {"sent": len(images)}:
        faults.append(f"states {books['states']}")
    written = {}
    for path in results.glob("*/results/*/*.dcm"):
        if path.stem in ("report", "capture"):
            written[str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)] = path
    if set(archive.held) != set(written):
        faults.append(f"the PACS holds {len(archive.held)} objects, {len(written)} were written")
    if len(written) != 2 * len(images):
        faults.append(f"{len(written)} results of {len(images)} images")
    doubled = sum(len(contents) > 1 for contents in archive.held.values())
    if doubled:
        faults.append(f"{doubled} identifiers stand for two contents")
    return faults


def run_load(folder: Path, images_count: int, senders: int, per_study: int) -> dict[str, object]:
    model, sound = write_small_model(folder)
    images, pacs_port = make_images(sound, images_count, per_study), find_port()
    service, archive = Service(folder, model, pacs_port, pause_s=2.0), Archive(pacs_port)
    service.start()
    assert service.wait_until_it_listens()
    before = service.read_memory_mib()
    times: list[list[float]] = [[] for _ in range(senders)]
    confirmed: dict[str, int] = {}
    memory: list[float] = [before]
    begun = time.monotonic()

    def send_all(number: int) -> None:
        own = images[number::senders]
        while any(image.SOPInstanceUID not in confirmed for image in own):
            send(service.port, own, confirmed, times[number])

    threads = [threading.Thread(target=send_all, args=(number,)) for number in range(senders)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.append(service.read_memory_mib())
        time.sleep(0.2)
    sent_s = time.monotonic() - begun
    answers = np.concatenate(times)
    p50, p99, most = (float(np.quantile(answers, q)) for q in (0.5, 0.99, 1.0))
    print(f"{len(confirmed)} of {images_count} confirmed in {sent_s:.1f} s, {max(memory):.0f} MiB at most")
    print(f"answer to C-STORE: median {p50:.3f} s, 99 % {p99:.3f} s, longest {most:.3f} s", flush=True)
    done = wait_until_all_is_sent(service, images_count, 3600.0, memory)
    all_s = time.monotonic() - begun
    service.end(signal.SIGTERM)
    service.close()
    archive.close()
    books = read_books(service)
    faults = find_faults(books, images, archive, service.state / "studies")
    again = len(books["examined"]) - len(images)
    print(f"all examined and delivered in {all_s:.0f} s", *faults, sep="; ")
    return {
        "images": images_count, "senders": senders, "sending_s": round(sent_s, 1), "all_s": round(all_s, 1),
        "median_s": round(p50, 4), "p99_s": round(p99, 4), "longest_s": round(most, 4),
        "memory_before_mib": round(before), "memory_most_mib": round(max(memory)), "examined_again": again,
        "faults": faults, "right": done and not faults and len(confirmed) == images_count and p99 < 0.5,
    }  # fmt: skip


def run_kills(folder: Path, kills: int, rng: np.random.Generator, count: int) -> dict[str, object]:
    model, sound = write_small_model(folder)
    images, pacs_port = make_images(sound, count, 4), find_port()
    service, archive = Service(folder, model, pacs_port, pause_s=0.5), Archive(pacs_port)
    confirmed: dict[str, int] = {}
    stopped = threading.Event()

    def keep_sending() -> None:
        while not stopped.is_set():  # a few images after each start, so that kills fall into every stage
            batch = [image for image in images if image.SOPInstanceUID not in confirmed][: max(2, count // kills)]
            send(service.port, batch, confirmed, [])
            time.sleep(0.3)

    sender = threading.Thread(target=keep_sending)
    sender.start()
    for number in range(kills):
        service.start()
        listening = service.wait_until_it_listens() if rng.random() < 0.9 else False
        after_s = float(rng.uniform(0.0, 6.0))
        time.sleep(after_s)
        service.end(signal.SIGKILL)
        reading = NodeState(service.state / "node.sqlite") if (service.state / "node.sqlite").exists() else None
        states = {} if reading is None else reading.count_objects()
        if reading is not None:
            reading.close()
        known, received = len(confirmed), sum(states.values())
        words = f"confirmed {known}, in the books {received}: {states}"
        when = f"{after_s:.2f} s after it {'listened' if listening else 'was started'}"
        print(f"kill {number + 1:3} {when}: {words}", flush=True)
        if received < known:
            print("LOST", flush=True)
    service.start()
    service.wait_until_it_listens()
    while len(confirmed) < count:
        time.sleep(0.2)
    stopped.set()
    sender.join()
    done = wait_until_all_is_sent(service, count, 1800.0, [])
    service.end(signal.SIGTERM)
    service.close()
    archive.close()
    books = read_books(service)
    faults = find_faults(books, images, archive, service.state / "studies")
    print(f"in the end: {books['states']}, the PACS was sent {archive.received} and holds {len(archive.held)}", *faults)
    return {
        "kills": kills, "images": count, "sent_over_the_wire": archive.received, "held_by_pacs": len(archive.held),
        "audit_lines": books["audit_lines"], "faults": faults, "right": done and not faults,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=("load", "kills"))
    parser.add_argument("--images", type=int)
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--per-study", type=int, default=4)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["UNARY_PATIENT_KEY"] = str(folder / "patients.key")
        if options.part == "load":
            told = run_load(folder, options.images or 1000, options.senders, options.per_study)
        else:
            rng = np.random.default_rng(options.seed)
            told = run_kills(folder, options.kills, rng, options.images or 60)
    print(json.dumps({"benchmark": f"node {options.part}", **told}), flush=True)
    os._exit(0 if told["right"] else 1)  # pynetdicom's threads would go on


if __name__ == "__main__":
    main()
