"""The command that proves a model on a hospital's own normal images: commission."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from unary.cli.options import (
    Command,
    Form,
    add_config_options,
    add_option,
    end_partly,
    read_config_options,
    read_path,
)
from unary.errors import CalibrationError, UnaryError
from unary.records import NOTICE, count_words

_KINDS = ("specks", "clusters", "masses")


def _add_options(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    from unary.evaluation.commissioning_plans import CommissionConfig

    def read_kinds(text: str) -> tuple[str, ...]:
        kinds = tuple(dict.fromkeys(text.split(",")))
        if not set(kinds) <= set(_KINDS):
            raise ValueError(text)
        return kinds

    parser.add_argument("model", type=read_path, metavar="MODEL/", help="a folder that `unary fit` wrote")
    parser.add_argument("manifest", type=read_path, metavar="NORMALS.csv", help="normal images of your own hospital")
    parser.add_argument("--out", type=read_path, required=True, metavar="DIR/", help="gets the report")
    form = Form("A,B", f"some of {', '.join(_KINDS)}", read_kinds)
    add_option(parser, "--only", form, help=f"insert these alone, of {', '.join(_KINDS)}")
    add_config_options(parser.add_argument_group("what is asked"), CommissionConfig())


def _run(options: argparse.Namespace) -> int:
    from datetime import datetime

    from unary.datasets.manifest import read_manifest
    from unary.evaluation.commissioning import ask_model, choose_rows
    from unary.evaluation.commissioning_plans import CommissionConfig, choose_plans
    from unary.evaluation.commissioning_summary import list_normals, summarise
    from unary.files import locking
    from unary.models.bundle import identify_model, read_model
    from unary.models.patients import count_seen
    from unary.outputs.commissioning_report import write_commissioning

    config = read_config_options(options, CommissionConfig())
    plans = choose_plans(config, options.only)
    model = read_model(options.model)
    identity = identify_model(model, options.model)
    if model.calibration is None:
        raise CalibrationError(
            f"{options.model}: the model is not calibrated, and without operating points nothing is found or missed; "
            "see `unary calibrate`"
        )
    rows = choose_rows(list_normals(read_manifest(options.manifest), model), config.most_images)
    seen = count_seen(model.provenance.seen, (row.patient_id for row in rows))
    with locking(options.out):
        _require_own(options.out)
        made_from = {"model": identity.sha256, "unary": identity.version}
        answers = ask_model(model, rows, plans, seed=config.seed, kept=options.out, made_from=made_from)
        made = summarise(model, plans, answers, seed=config.seed, seen=seen)
        moment = datetime.now().astimezone().replace(microsecond=0)
        lines = write_commissioning(made, model, identity, options.out, config=config, moment=moment)
    for line in lines:
        print(line)
    done, failed = len(answers.answers), len(answers.failed)
    print(f"{count_words(done, 'image')} ({answers.kept} of them done before), {failed} not usable (images.csv)")
    print(NOTICE)
    return end_partly(done, failed)


def _require_own(out: Path) -> None:
    """Refuse a folder that holds a report which is not of this command."""
    from unary.outputs.commissioning_report import HTML_FILE, JSON_FILE

    for path in (out / HTML_FILE, out / JSON_FILE):
        if path.exists() and not (path.is_file() and NOTICE.encode() in path.read_bytes()):
            raise UnaryError(f"{path}: unary has not written it and does not replace it; choose another --out")


COMMANDS = (
    Command(
        "commission",
        "insert simulated lesions into your own normal images and report what the model finds of them",
        _add_options,
        _run,
    ),
)
