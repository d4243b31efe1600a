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
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pacs  # beside this file
from pacs import HospitalError, Ports, ask, ending, wait

NOTICE = "Research software. Not for diagnosis."


def main(arguments: Sequence[str] | None = None) -> int:
    """Open the hospital and keep it open until Ctrl-C."""
    parser = argparse.ArgumentParser(description="a PACS, a node and a review page for a try on phantoms")
    parser.add_argument("--folder", type=Path, default=Path("hospital"), help="state (default: hospital)")
    parser.add_argument("--once", action="store_true", help="end when the findings are back")
    options = parser.parse_args(arguments)
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
    if not pacs.ORTHANC.exists():
        raise HospitalError(f"{pacs.ORTHANC} is missing: apt-get install orthanc, or see docs/hospital.md")
    for port in ports.list_all():
        if not _is_free(port):
            raise HospitalError(f"port {port} is in use; is another hospital open?")
    folder.mkdir(parents=True, exist_ok=True)
    study, model = prepare(folder, size)
    with contextlib.ExitStack() as stack:
        confined = stack.enter_context(pacs.running_pacs(folder, ports))
        config = write_node_config(folder, model, ports)
        _start(stack, "node", folder, ["serve", str(config)])
        wait("the node", lambda: ask(f"http://127.0.0.1:{ports.node_web}/health") is not None, folder / "node.log")
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
    stack.enter_context(ending(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                                 start_new_session=True)))  # fmt: skip


def _open_page(stack: contextlib.ExitStack, folder: Path, ports: Ports) -> str:
    """Return where the review page is: in the node, or served beside it."""
    own = f"http://127.0.0.1:{ports.node_web}/review/"
    if ask(own) is not None:
        return own
    studies = folder / "state" / "studies"
    studies.mkdir(parents=True, exist_ok=True)
    _start(stack, "page", folder, ["review", str(studies), "--port", str(ports.page),
                                   "--judgements", str(folder / "judgements.sqlite")])  # fmt: skip
    page = f"http://127.0.0.1:{ports.page}/"
    wait("the review page", lambda: ask(page) is not None, folder / "page.log")
    return page


def send_through(study: Sequence[Path], ports: Ports, folder: Path) -> tuple[int, list[str]]:
    """Send images to the PACS, let it send them to the node, and wait for what comes back.

    Return how many images went, and a line for each object that came.
    """
    from unary.clinic.pacs import store_files
    from unary.clinic.pacs_address import DimseAddress
    from unary.clinic.pacs_files import read_parcel

    url = f"http://127.0.0.1:{ports.pacs_web}"
    address = DimseAddress("127.0.0.1", ports.pacs_dimse, "ORTHANC", calling_title="SCANNER")
    deliveries = store_files([read_parcel(path) for path in study], address, progress=False)
    if not all(each.stored for each in deliveries):
        raise HospitalError(f"the PACS did not take the images: {deliveries[0].note}")
    (known,) = ask(f"{url}/studies") or [None]
    series = ask(f"{url}/studies/{known}/series") or ()
    images = {each for one in series if one["MainDicomTags"].get("Modality") == "MG" for each in one["Instances"]}
    answer = ask(f"{url}/modalities/unary/store", json.dumps(sorted(images)).encode())
    if answer is None:
        raise HospitalError(f"the PACS could not send to the node; {folder / 'pacs.log'} and node.log say why")
    wait("the findings", lambda: _is_complete(_list_results(url, known), len(study)), folder / "node.log")
    return len(images), [_describe(each) for each in _list_results(url, known)]


def _list_results(url: str, study: str) -> list[dict[str, str]]:
    """The objects of a study that unary has made, by series and place in it."""
    found = []
    for series in ask(f"{url}/studies/{study}/series") or ():
        tags = series["MainDicomTags"]
        if tags.get("SeriesDescription", "").startswith("unary "):
            for instance in series["Instances"]:
                about = ask(f"{url}/instances/{instance}/simplified-tags") or {}
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


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
