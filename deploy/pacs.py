"""Orthanc for a try: reached by this machine alone, though Debian's version 1.10 listens on every interface.

It is started in a network of its own, in which there is the loopback alone; this process relays from its own loopback
to it, and from it to the node. Run as a script, this file is what relays inside that network.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ORTHANC = Path("/usr/sbin/Orthanc")
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
            inside = [*separate, sys.executable, __file__, numbers, f"{ports.node_dimse}:{way}", str(place)]
        command = inside or [str(ORTHANC), str(place / "orthanc.json")]
        process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
                                   pass_fds=[each.fileno() for each in listening])  # fmt: skip
        stack.enter_context(ending(process))
        url = f"http://127.0.0.1:{ports.pacs_web}/system"
        wait("Orthanc", lambda: ask(url) is not None, log, process)
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


@contextlib.contextmanager
def ending(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
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


def ask(url: str, body: bytes | None = None) -> Any:
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


def wait(what: str, ready: Callable[[], bool], log: Path, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until something is there."""
    end = time.monotonic() + _DEADLINE_S
    while not ready():
        if time.monotonic() > end or (process is not None and process.poll() is not None):
            raise HospitalError(f"{what} did not come; {log} says why")
        time.sleep(0.25)


if __name__ == "__main__":
    sys.exit(_run_inside(*sys.argv[1:]))
