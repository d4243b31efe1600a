"""A hospital to try: a PACS (Orthanc), a node and its review page, on phantoms, on this machine alone.

    make hospital            or: python deploy/hospital.py [--folder hospital] [--once]

Four views of a synthetic breast go to Orthanc, from there to the node, and its findings come back into their study.
Everything listens on loopback. Debian's Orthanc 1.10 listens on every interface and cannot be told otherwise, so it is
put into a network of its own (`unshare --net`), and this process relays its two ports; where the system allows no such
network, Orthanc refuses what is not local or not known to it, and a line says so. All state lies in one folder.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ORTHANC = Path("/usr/sbin/Orthanc")
NOTICE = "Research software. Not for diagnosis."
_DEADLINE_S = 300.0


class HospitalError(Exception):
    """The hospital cannot be opened; the message is meant for a person."""


@dataclass(frozen=True)
class Ports:
    """Where what listens, on loopback."""

    pacs_dimse: int = 4242
    pacs_web: int = 8042
    node_dimse: int = 11112
    node_web: int = 8080
    page: int = 8765

    def list_all(self) -> tuple[int, ...]:
        """All of them."""
        return (self.pacs_dimse, self.pacs_web, self.node_dimse, self.node_web, self.page)


def main(arguments: Sequence[str] | None = None) -> int:
    """Open the hospital and keep it open until Ctrl-C."""
    parser = argparse.ArgumentParser(description="a PACS, a node and a review page for a try on phantoms")
    parser.add_argument("--folder", type=Path, default=Path("hospital"), help="state (default: hospital)")
    parser.add_argument("--once", action="store_true", help="end when the findings are back")
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        return _run_inside(*options.inside)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with opening(options.folder.resolve(), Ports()) as lines:
            print(*lines, sep="\n", flush=True)
            while not options.once:
                time.sleep(1)
    except HospitalError as error:
        print(f"hospital: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nhospital: closed; its state is kept", file=sys.stderr)
    return 0


@contextlib.contextmanager
def opening(folder: Path, ports: Ports, *, size: tuple[int, int] = (1024, 832)) -> Iterator[list[str]]:
    """Open the hospital and let one study go through it; yield what to tell of it, and close it when the block ends.

    ``size`` is that of the phantoms in pixels, rows and columns.
    """
    if not ORTHANC.exists():
        raise HospitalError(f"{ORTHANC} is missing: apt-get install orthanc, or see docs/hospital.md")
    for port in ports.list_all():
        if not _is_free(port):
            raise HospitalError(f"port {port} is in use; is another hospital open?")
    folder.mkdir(parents=True, exist_ok=True)
    study, model = prepare(folder, size)
    with contextlib.ExitStack() as stack:
        confined = stack.enter_context(running_pacs(folder, ports))
        config = write_node_config(folder, model, ports)
        _start(stack, "node", folder, ["serve", str(config)])
        _wait("the node", lambda: _ask(f"http://127.0.0.1:{ports.node_web}/health") is not None, folder / "node.log")
        page = _open_page(stack, folder, ports)
        _tell("sending four views to the PACS, and from there to the node")
        sent, objects = send_through(study, ports, folder)
        yield [
            f"PACS (Orthanc)   http://127.0.0.1:{ports.pacs_web}/   DICOM ORTHANC@127.0.0.1:{ports.pacs_dimse}",
            f"node             http://127.0.0.1:{ports.node_web}/health   DICOM UNARY@127.0.0.1:{ports.node_dimse}",
            f"review page      {page}",
            f"state            {folder}",
            *([] if confined else ["Orthanc listens on EVERY interface (no network of its own is allowed here); it "
                                   "refuses what is not local or not known to it"]),
            f"{sent} images sent; {len(objects)} objects came back into their study:",
            *(f"    {series}" for series in objects),
            f"Ctrl-C closes it. {NOTICE}",
        ]  # fmt: skip


def _tell(text: str) -> None:
    print(f"hospital: {text}", file=sys.stderr, flush=True)


def prepare(folder: Path, size: tuple[int, int]) -> tuple[list[Path], Path]:
    """Draw phantoms and fit a model, unless they are there; return the four views of a study, and the model."""
    from unary.datasets.phantom import PhantomConfig, write_phantom_dataset
    from unary.models.bundle import write_model
    from unary.models.fitting import FitConfig, fit

    model, phantoms, done = folder / "model", folder / "phantoms", folder / "prepared.json"
    if not done.exists() or json.loads(done.read_text()) != list(size):
        _tell("drawing phantoms and learning normal tissue, once")
        for old in (model, phantoms, folder / "state", folder / "pacs"):
            shutil.rmtree(old, ignore_errors=True)
        spacing_mm = 0.2 * 1024 / size[0]
        config = PhantomConfig(rows=size[0], cols=size[1], spacing_mm=spacing_mm)
        counts: dict[str, Any] = {"config": config, "seed": 16}
        normal = write_phantom_dataset(phantoms / "own", patients_normal=12, patients_abnormal=0, **counts)
        counts["seed"] = 17
        write_phantom_dataset(
            phantoms / "study", patients_normal=0, patients_abnormal=1, images_per_patient=4, **counts
        )
        write_model(fit(normal, FitConfig(held_out=0.5), detector="laplacian", progress=False), model)
        done.write_text(json.dumps(size))
    return sorted((phantoms / "study").rglob("*.dcm")), model


def write_node_config(folder: Path, model: Path, ports: Ports) -> Path:
    """Write the NODE.toml of the hospital, as deploy/NODE.toml shows it for a real one."""
    path = folder / "NODE.toml"
    path.write_text(
        f"""# Written by deploy/hospital.py. {NOTICE}
model = {json.dumps(str(model))}
state = {json.dumps(str(folder / "state"))}
pause_s = 5

[dimse]
port = {ports.node_dimse}
[[dimse.callers]]
title = "ORTHANC"
addresses = ["127.0.0.1"]

[web]
port = {ports.node_web}

[limits]
free_gib = 0.1

[destinations.pacs]
dimse = "ORTHANC@127.0.0.1:{ports.pacs_dimse}"
""",
        encoding="utf-8",
    )
    return path


def _start(stack: contextlib.ExitStack, name: str, folder: Path, words: Sequence[str]) -> None:
    """Run a command of unary's until the stack is unwound."""
    log = stack.enter_context((folder / f"{name}.log").open("w"))
    command = [sys.executable, "-m", "unary.cli", *words]
    stack.enter_context(_ending(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                                 start_new_session=True)))  # fmt: skip


@contextlib.contextmanager
def _ending(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End a process when the block ends: asked first, then killed."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _open_page(stack: contextlib.ExitStack, folder: Path, ports: Ports) -> str:
    """Return where the review page is: in the node, or served beside it."""
    own = f"http://127.0.0.1:{ports.node_web}/review/"
    if _ask(own) is not None:
        return own
    studies = folder / "state" / "studies"
    studies.mkdir(parents=True, exist_ok=True)
    _start(stack, "page", folder, ["review", str(studies), "--port", str(ports.page),
                                   "--judgements", str(folder / "judgements.sqlite")])  # fmt: skip
    page = f"http://127.0.0.1:{ports.page}/"
    _wait("the review page", lambda: _ask(page) is not None, folder / "page.log")
    return page


def send_through(study: Sequence[Path], ports: Ports, folder: Path) -> tuple[int, list[str]]:
    """Send images to the PACS, let it send them to the node, and wait for what comes back.

    Return how many images went, and a line for each object that came.
    """
    from unary.clinic.pacs import store_files
    from unary.clinic.pacs_address import DimseAddress
    from unary.clinic.pacs_files import read_parcel

    pacs = f"http://127.0.0.1:{ports.pacs_web}"
    address = DimseAddress("127.0.0.1", ports.pacs_dimse, "ORTHANC", calling_title="SCANNER")
    deliveries = store_files([read_parcel(path) for path in study], address, progress=False)
    if not all(each.stored for each in deliveries):
        raise HospitalError(f"the PACS did not take the images: {deliveries[0].note}")
    (known,) = _ask(f"{pacs}/studies") or [None]
    series = _ask(f"{pacs}/studies/{known}/series") or ()
    images = {each for one in series if one["MainDicomTags"].get("Modality") == "MG" for each in one["Instances"]}
    answer = _ask(f"{pacs}/modalities/unary/store", json.dumps(sorted(images)).encode())
    if answer is None:
        raise HospitalError(f"the PACS could not send to the node; {folder / 'pacs.log'} and node.log say why")
    _wait("the findings", lambda: _is_complete(_list_results(pacs, known), len(study)), folder / "node.log")
    return len(images), [_describe(each) for each in _list_results(pacs, known)]


def _list_results(pacs: str, study: str) -> list[dict[str, str]]:
    """The objects of a study that unary has made, by series and place in it."""
    found = []
    for series in _ask(f"{pacs}/studies/{study}/series") or ():
        tags = series["MainDicomTags"]
        if tags.get("SeriesDescription", "").startswith("unary "):
            for instance in series["Instances"]:
                about = _ask(f"{pacs}/instances/{instance}/simplified-tags") or {}
                found.append({"series": tags["SeriesDescription"], "modality": tags.get("Modality", ""), **about})
    return sorted(found, key=lambda each: (int(each.get("SeriesNumber") or 0), int(each.get("InstanceNumber") or 0)))


def _is_complete(results: Sequence[dict[str, str]], images: int) -> bool:
    """Whether every image has its report and its capture, and the study its CAD report and its summary."""
    series = [each["series"].split(" - ")[0] for each in results]
    needed = {"unary report": images, "unary findings": images, "unary CAD report": 1, "unary study summary": 1}
    return all(series.count(name) >= count for name, count in needed.items())


def _describe(result: dict[str, str]) -> str:
    about = result.get("ImageComments", "").split(". ")[0] or result.get("ContentDescription", "").split(". ")[0]
    return f"{result['modality']:4} {result['series'].split(' - ')[0]}" + (f": {about}" if about else "")


# --- the PACS, in a network of its own --------------------------------------------------------------------------------


@contextlib.contextmanager
def running_pacs(folder: Path, ports: Ports) -> Iterator[bool]:
    """Run Orthanc until the block ends; yield whether it is in a network of its own."""
    place = folder / "pacs"
    (place / "db").mkdir(parents=True, exist_ok=True)
    settings = configure_pacs(place, ports)
    (place / "orthanc.json").write_text(json.dumps(settings, indent=2))
    separate = find_separation()
    log = folder / "pacs.log"
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(log.open("w"))
        inside: list[str] = []
        listening: list[socket.socket] = []
        if separate is not None:
            listening = [stack.enter_context(_listen(port)) for port in (ports.pacs_dimse, ports.pacs_web)]
            # out of the other network, through a file: to the node
            bridge = stack.enter_context(socket.socket(socket.AF_UNIX))
            way = str(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unary-")), "bridge"))
            bridge.bind(way)
            bridge.listen()
            _relay(bridge, lambda: socket.create_connection(("127.0.0.1", ports.node_dimse), 10))
            numbers = ",".join(f"{each.fileno()}:{each.getsockname()[1]}" for each in listening)
            inside = [*separate, sys.executable, __file__, "--inside", numbers, f"{ports.node_dimse}:{way}", str(place)]
        command = inside or [str(ORTHANC), str(place / "orthanc.json")]
        process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
                                   pass_fds=[each.fileno() for each in listening])  # fmt: skip
        stack.enter_context(_ending(process))
        url = f"http://127.0.0.1:{ports.pacs_web}/system"
        _wait("Orthanc", lambda: _ask(url) is not None, log, process)
        yield separate is not None


def configure_pacs(place: Path, ports: Ports) -> dict[str, Any]:
    """Return Orthanc's configuration: local callers and known applications alone, everything in one folder."""
    return {
        "Name": "unary: a hospital to try",
        "StorageDirectory": str(place / "db"),
        "IndexDirectory": str(place / "db"),
        "HttpPort": ports.pacs_web,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomPort": ports.pacs_dimse,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True,
        "DicomCheckModalityHost": True,
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False,
        "DicomModalities": {
            "unary": {"AET": "UNARY", "Host": "127.0.0.1", "Port": ports.node_dimse},
            "scanner": {"AET": "SCANNER", "Host": "127.0.0.1", "Port": ports.node_dimse},
        },
    }


def find_separation() -> list[str] | None:
    """Return the command that runs another in a network of its own, or None where the system allows none."""
    for options in (["--net"], ["--user", "--map-root-user", "--net"]):
        command = ["unshare", *options]
        with contextlib.suppress(OSError):
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                return command
    return None


def _run_inside(numbers: str, node: str, place: str) -> int:
    """In the network of its own: relay from the sockets that were handed over to Orthanc, and from it to the node."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:  # as "ip link set lo up"
        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up and running
    os.chdir(place)
    node_port, way = node.split(":", 1)

    def bridge() -> socket.socket:
        out = socket.socket(socket.AF_UNIX)
        out.connect(way)
        return out

    _relay(_listen(int(node_port)), bridge)
    for pair in numbers.split(","):
        number, port = map(int, pair.split(":"))
        _relay(socket.socket(fileno=number), _connector(port))
    process = subprocess.Popen([ORTHANC, "orthanc.json"], stdin=subprocess.DEVNULL)

    def stop(*_: object) -> None:
        process.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return process.wait()


def _connector(port: int) -> Callable[[], socket.socket]:
    return lambda: socket.create_connection(("127.0.0.1", port), 10)


def _listen(port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen(32)
    return listening


def _relay(listening: socket.socket, connect: Callable[[], socket.socket]) -> None:
    """Join every connection to one that ``connect`` makes, in threads that end with the process."""

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def serve(inner: socket.socket) -> None:
        with inner:
            try:
                outer = connect()
            except OSError:
                return
            with outer:
                outer.settimeout(None)
                back = threading.Thread(target=pump, args=(outer, inner), daemon=True)
                back.start()
                pump(inner, outer)
                back.join()

    def accept() -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


# --- small things -----------------------------------------------------------------------------------------------------


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _ask(url: str, body: bytes | None = None) -> Any:
    """GET, or POST a body, and return the JSON or text of the answer; None when there is none."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, data=body), timeout=60) as answer:
            text = answer.read().decode("utf-8", "replace")
    except OSError:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _wait(what: str, ready: Callable[[], bool], log: Path, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until something is there."""
    end = time.monotonic() + _DEADLINE_S
    while not ready():
        if time.monotonic() > end or (process is not None and process.poll() is not None):
            raise HospitalError(f"{what} did not come; {log} says why")
        time.sleep(0.25)


if __name__ == "__main__":
    sys.exit(main())
