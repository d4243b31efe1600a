"""The command that sends DICOM results to a PACS."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unary.cli.answers import add_dry_run, add_json, answer
from unary.cli.options import Command, add_config_options, end_partly, read_config_options, read_path
from unary.errors import UnaryError
from unary.records import count_words

if TYPE_CHECKING:
    from unary.clinic.pacs_address import DimseAddress, Tls, WebAddress
    from unary.clinic.pacs_files import Selection


def _add_send_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    from unary.clinic.pacs_address import Patience

    files = "DICOM files; of folders, what unary has made"
    parser.add_argument("inputs", type=read_path, nargs="+", metavar="FILE-OR-FOLDER", help=files)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--dimse", metavar="AET@HOST:PORT", help="by C-STORE; an address of IPv6 as AET@[::1]:PORT")
    secrets = "password from UNARY_WEB_PASSWORD, or token from UNARY_WEB_TOKEN, in the environment"
    where.add_argument("--web", metavar="URL", help=f"by STOW-RS, to URL/studies; {secrets}")
    parser.add_argument("--calling-title", metavar="AET", help="own title, with --dimse (default: UNARY)")
    parser.add_argument("--user", help="of the DICOMweb server, with --web")
    plain = "send password or token over http:// to another machine too, where anybody on the way can read them"
    parser.add_argument("--allow-plain-http", action="store_true", help=plain)
    add_json(parser)
    add_dry_run(parser)
    secure = parser.add_argument_group("secure connections, with --tls or --web https://; files in PEM")
    secure.add_argument("--tls", action="store_true", help="DIMSE over TLS")
    trust = "the authorities to trust, in place of those of this system; or a server's own certificate"
    secure.add_argument("--ca-file", type=read_path, metavar="FILE", help=trust)
    secure.add_argument(
        "--client-cert", type=read_path, metavar="FILE", help="own certificate, where the server asks for one"
    )
    secure.add_argument(
        "--client-key", type=read_path, metavar="FILE", help="its key, if in another file; not encrypted"
    )
    add_config_options(parser.add_argument_group("time limits and attempts"), Patience())


def _run_send(options: argparse.Namespace) -> int:
    from unary.clinic.pacs import describe_deliveries, store_files
    from unary.clinic.pacs_address import Patience
    from unary.clinic.pacs_delivery import Interrupted
    from unary.clinic.pacs_files import select_files

    patience = read_config_options(options, Patience())
    try:
        address = _read_address(options)
    except ValueError as error:
        raise UnaryError(f"{'--web' if options.dimse is None else '--dimse'}: {error}") from error
    selection = select_files(options.inputs)
    if options.dry_run:
        return _plan(options, selection)
    try:
        deliveries = store_files(selection.parcels, address, patience)
        report = describe_deliveries(selection, deliveries)
    except Interrupted as error:
        print(*describe_deliveries(selection, error.deliveries).lines, sep="\n", file=sys.stderr)
        raise
    *details, total = report.lines
    for line in details:
        print(line, file=sys.stderr)
    if not report.stored + report.failed:
        raise UnaryError("no .dcm file that unary has made among the inputs")
    print(total)
    files = [
        {"path": one.parcel.path, "stored": one.stored, "attempts": one.attempts, "note": one.note}
        for one in deliveries
    ]
    answer(options, {"command": "send", "stored": report.stored, "files": files, **_describe_others(selection)})
    return end_partly(report.stored, report.failed)


def _plan(options: argparse.Namespace, selection: Selection) -> int:
    """Say what would be sent; nobody is called."""
    for path, why in selection.unfit:
        print(f"{path}: not sent: {why}", file=sys.stderr)
    for why, paths in selection.passed_over:
        print(f"passed over: {len(paths)} {why}", file=sys.stderr)
    count = len(selection.parcels)
    print(f"{count_words(count, 'object')} would be sent to {options.dimse or options.web}. Nothing was sent.")
    files = [{"path": parcel.path} for parcel in selection.parcels]
    answer(options, {"command": "send", "dry_run": True, "files": files, **_describe_others(selection)})
    return end_partly(count, len(selection.unfit))


def _describe_others(selection: Selection) -> dict[str, Any]:
    """What is not sent, for JSON."""
    unfit = [{"path": path, "why": why} for path, why in selection.unfit]
    return {"not_sent": unfit, "passed_over": {why: len(paths) for why, paths in selection.passed_over}}


def _read_address(options: argparse.Namespace) -> DimseAddress | WebAddress:
    from unary.clinic.pacs_address import DimseAddress, WebAddress

    if options.dimse is not None:
        for flag, given in (("--user", options.user), ("--allow-plain-http", options.allow_plain_http or None)):
            if given is not None:
                raise UnaryError(f"{flag} goes with --web alone")
        return DimseAddress.parse(options.dimse, calling_title=options.calling_title or "UNARY", tls=_read_tls(options))
    for flag, given in (("--calling-title", options.calling_title), ("--tls", options.tls or None)):
        if given is not None:
            raise UnaryError(f"{flag} goes with --dimse alone")
    password, token = os.environ.get("UNARY_WEB_PASSWORD"), os.environ.get("UNARY_WEB_TOKEN")
    if options.user is not None and password is None:
        raise UnaryError("--user needs the password in the environment, as UNARY_WEB_PASSWORD")
    if options.user is None and password is not None and token is None:
        raise UnaryError("UNARY_WEB_PASSWORD is set, but whose it is not: add --user")
    if options.user is not None and token is not None:
        raise UnaryError("--user goes with UNARY_WEB_PASSWORD, but UNARY_WEB_TOKEN is set too; unset one of the two")
    return WebAddress(
        options.web,
        user=options.user,
        password=None if options.user is None else password,
        token=token,
        tls=_read_tls(options),
        plain_http=options.allow_plain_http,
    )


def _read_tls(options: argparse.Namespace) -> Tls | None:
    """Certificates where they are given or wanted; an UnaryError where they would not be used."""
    from unary.clinic.pacs_address import Tls

    files = {"--ca-file": options.ca_file, "--client-cert": options.client_cert, "--client-key": options.client_key}
    given = [flag for flag, path in files.items() if path is not None]
    if options.dimse is not None and given and not options.tls:
        raise UnaryError(f"{given[0]} needs --tls")
    if options.web is not None and given and not options.web.lower().startswith("https://"):
        raise UnaryError(f"{given[0]} goes with --web https://... alone")
    if options.client_key is not None and options.client_cert is None:
        raise UnaryError("--client-key needs --client-cert")
    return Tls(options.ca_file, options.client_cert, options.client_key) if given or options.tls else None


COMMANDS = (Command("send", "send DICOM results to a PACS", _add_send_options, _run_send),)
