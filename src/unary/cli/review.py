"""The command that serves the review page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from unary.cli.options import Command, add_option, read_path, whole_number
from unary.errors import UnaryError
from unary.records import NOTICE, count_words

_TOKEN = "UNARY_REVIEW_TOKEN"
_DATABASE = "judgements.sqlite"


def _add_review_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    roots = "folders that `unary detect --out` has written, or that have such below them"
    parser.add_argument("roots", type=read_path, nargs="+", metavar="RESULTS/", help=roots)
    kept = f"where verdicts are kept, SQLite (default: {_DATABASE} in the first folder)"
    parser.add_argument("--judgements", type=read_path, metavar="FILE", help=kept)
    exported = "write what was judged there, as judgements.csv and manifest.csv, and end"
    parser.add_argument("--export", type=read_path, metavar="DIR/", help=exported)
    where = parser.add_argument_group("where the page is served")
    add_option(where, "--port", whole_number(0), default=8765, help="0 takes a free one")
    away = "anything but loopback needs a token and TLS"
    where.add_argument("--address", default="127.0.0.1", metavar="ADDRESS", help=f"default: 127.0.0.1; {away}")
    names = "a name by which browsers ask for it, beside the address; may be repeated"
    where.add_argument("--name", action="append", default=[], metavar="HOST", help=names)
    token = f"file with the access token, made if it is not there (else {_TOKEN} in the environment)"
    where.add_argument("--token-file", type=read_path, metavar="FILE", help=token)
    where.add_argument("--certificate", type=read_path, metavar="FILE", help="for TLS, in PEM")
    where.add_argument("--key", type=read_path, metavar="FILE", help="of the certificate, in PEM")
    plain = "serve other machines without TLS: only behind something that encrypts"
    where.add_argument("--allow-plain-http", action="store_true", help=plain)
    add_option(parser, "--cache-mib", whole_number(64), default=512, help="memory for pixels")


def _run_review(options: argparse.Namespace) -> int:
    for root in options.roots:
        if not root.is_dir():
            raise UnaryError(f"{root}: no such folder")
    judgements = options.judgements or options.roots[0] / _DATABASE
    return _export(options, judgements) if options.export else _serve(options, judgements)


def _export(options: argparse.Namespace, judgements: Path) -> int:
    from unary.clinic.review.export import export_judgements
    from unary.clinic.review.judgements import JudgementStore
    from unary.clinic.review.results import ResultIndex

    if not judgements.exists():
        raise UnaryError(f"{judgements}: nothing has been judged there yet")
    store = JudgementStore(judgements)
    try:
        images = ResultIndex(options.roots).list_images().values()
        manifest = export_judgements(store.list_all(), images, options.export)
    finally:
        store.close()
    labels = [row.label for row in manifest.rows]
    print(
        f"{options.export}: {count_words(len(labels), 'image')} judged, {labels.count('positive')} positive, "
        f"{labels.count('negative')} negative, {count_words(len(manifest.lesions), 'lesion')}. {NOTICE}"
    )
    return 0


def _serve(options: argparse.Namespace, judgements: Path) -> int:
    from unary.clinic.review.app import build_review_app
    from unary.clinic.review.serving import Listening, open_socket, serve_app
    from unary.clinic.web_access import build_access, build_context, read_token

    try:
        listening = Listening(options.address, options.port, options.certificate, options.key)
    except ValueError as error:
        raise UnaryError(str(error)) from error
    tls = build_context(listening) is not None  # says which file is of no use
    token = read_token(options.token_file, _TOKEN)
    access = build_access(
        listening.address, token=token, names=options.name, tls=tls, plain_http=options.allow_plain_http
    )
    app = build_review_app(options.roots, judgements, access=access, cache_mib=options.cache_mib)
    opened = open_socket(listening)
    host = options.name[0] if options.name else listening.address
    host = f"[{host}]" if ":" in host else host
    print(f"http{'s' if tls else ''}://{host}:{opened.getsockname()[1]}/ (Ctrl-C ends it). {NOTICE}", flush=True)
    if token is not None and options.token_file is not None:
        print(f"the page asks for the token in {options.token_file}", flush=True)
    with suppress(KeyboardInterrupt):  # which is how it is ended
        serve_app(app, listening, opened)
    return 0


COMMANDS = (
    Command(
        "review", "serve a page on which readers look at findings and judge them", _add_review_options, _run_review
    ),
)
