"""What stands in deploy/: the files name commands, fields and files that exist, and give away nothing."""

import configparser
import http.server
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from unary.cli.main import COMMANDS
from unary.clinic.node.config import read_config

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def read_container_file():
    """Return the instructions of the container file, each with its argument, lines joined."""
    text = (DEPLOY / "Containerfile").read_text()
    lines = re.sub(r"\\\n\s*", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [tuple(line.split(maxsplit=1)) for line in lines.splitlines() if line.strip()]


def test_the_container_runs_as_an_ordinary_user_with_commands_that_exist():
    instructions = read_container_file()
    last = dict(instructions)
    assert last["USER"] == "unary"
    names = [name for name, _ in instructions]
    assert names.index("USER") < names.index("ENTRYPOINT") < names.index("CMD")
    assert "HEALTHCHECK" in names
    assert all(name != "ADD" for name in names)
    known = {command.name for command in COMMANDS}
    assert last["CMD"] == '["serve", "/etc/unary/NODE.toml"]'
    assert "serve" in known
    images = [argument.split()[0] for name, argument in instructions if name == "FROM"]
    assert images == ["docker.io/library/python:3.11-slim"] * 2
    for name, argument in instructions:
        if name == "COPY" and "--from" not in argument:
            for source in argument.split()[:-1]:
                assert (ROOT / source).exists(), source
    text = (DEPLOY / "Containerfile").read_text().lower()
    assert not re.search(r"(password|secret|token)\s*=", text)
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.search(r"'\.\[(\w+)\]'", text).group(1) in extra


def test_what_the_container_is_built_of_is_let_through():
    allowed = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"]
    for name, argument in read_container_file():
        if name == "COPY" and "--from" not in argument:
            for source in argument.split()[:-1]:
                assert source.removeprefix("./") in allowed, source


def read_unit():
    """Return the sections of the unit; of settings given twice, the last counts."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str
    parser.read_string((DEPLOY / "unary-node.service").read_text())
    return parser


def test_the_unit_is_hardened_and_its_command_exists():
    service = read_unit()["Service"]
    assert service["User"] == service["Group"] == "unary"
    for name, value in {
        "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes",
        "CapabilityBoundingSet": "", "RestrictSUIDSGID": "yes", "UMask": "0077", "StateDirectoryMode": "0700",
        "RestrictNamespaces": "yes", "LockPersonality": "yes", "ProtectKernelModules": "yes",
    }.items():  # fmt: skip
        assert service[name] == value, name
    program, command, config = service["ExecStart"].split()
    assert (Path(program).name, Path(config).name) == ("unary", "NODE.toml")
    assert command in {each.name for each in COMMANDS}
    assert int(service["TimeoutStopSec"]) > 120  # what a node takes to end


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_understands_the_unit(tmp_path):
    unit = tmp_path / "unary-node.service"
    text = (DEPLOY / "unary-node.service").read_text()
    unit.write_text(text.replace("/opt/unary/bin/unary", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=20", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout  # exposure at most 2.0 of 10


def test_the_example_is_a_configuration_that_listens_on_loopback():
    config = read_config(DEPLOY / "NODE.toml")
    assert (config.dimse.host, config.web.host) == ("127.0.0.1", "127.0.0.1")
    assert config.dimse.callers[0].title == "PACS"
    assert config.destinations[0].name == "pacs"
    assert config.state == Path("/var/lib/unary/state")  # below StateDirectory of the unit, and the container's volume


def test_what_the_example_has_in_comments_is_understood(tmp_path):
    text = (DEPLOY / "NODE.toml").read_text()
    path = tmp_path / "NODE.toml"
    path.write_text(re.sub(r'(?m)^# (certificate|key|client_ca|token_file) = "', r'\1 = "', text))
    config = read_config(path)
    assert config.web.token_file == Path("/run/credentials/unary-node.service/web-token")
    assert config.dimse.client_ca == Path("/etc/unary/tls/senders.pem")


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1), (None, 1)])
def test_the_health_check_asks_the_node(tmp_path, status, expected):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    path = tmp_path / "NODE.toml"
    path.write_text(f'[web]\nhost = "0.0.0.0"\nport = {server.server_port}\n')
    try:
        if status is None:
            server.shutdown()
            server.server_close()
        done = subprocess.run([sys.executable, DEPLOY / "healthcheck.py", path], capture_output=True, check=False)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert done.returncode == expected
