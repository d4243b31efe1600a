"""Ask a node on this machine whether it is well; the exit status is 0 if it is.

Nothing but the standard library is loaded, since this runs every minute.
"""

from __future__ import annotations

import ssl
import sys
import tomllib
import urllib.request
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Ask ``/health`` of the node whose NODE.toml is named; a certificate is not checked, for the name is loopback."""
    web = tomllib.loads(Path(arguments[0]).read_text(encoding="utf-8")).get("web")
    if web is None:
        print("no [web] in the configuration: nothing to ask")
        return 0
    host = web.get("host", "127.0.0.1")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    context, scheme = None, "http"
    if web.get("certificate"):
        scheme, context = "https", ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{web['port']}/health"
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=8) as answer:
            print(answer.status)
    except OSError as error:  # not well, or not there
        print(f"{type(error).__name__}: {getattr(error, 'code', error)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
