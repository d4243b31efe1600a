"""Pages of images beside a report, a hundred on each, with links between them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unary.outputs.cards import Card
from unary.outputs.report import Link, Report, Section, write_report

CARDS_PER_PAGE = 100
_FILE = "report-images-{:03d}.html"


def name_page(place: int) -> str:
    """Return the file of the page that the image of a place, from 0, is on.

    >>> name_page(0), name_page(100)
    ('report-images-001.html', 'report-images-002.html')
    """
    return _FILE.format(1 + place // CARDS_PER_PAGE)


def count_pages(images: int) -> int:
    """Return how many pages so many images have."""
    return -(-images // CARDS_PER_PAGE)


def list_pages(images: int) -> tuple[Link, ...]:
    """Return links to all pages of images."""
    pages = count_pages(images)
    if pages == 1:
        return (Link("all images, one by one", name_page(0)),)
    starts = range(0, images, CARDS_PER_PAGE)
    return tuple(Link(f"images {k + 1:,} to {min(k + CARDS_PER_PAGE, images):,}", name_page(k)) for k in starts)


def group_cards(cards: Sequence[Card]) -> Iterator[tuple[Card, ...]]:
    """Yield the images of each page."""
    for start in range(0, len(cards), CARDS_PER_PAGE):
        yield tuple(cards[start : start + CARDS_PER_PAGE])


def write_card_pages(
    out: Path,
    groups: Iterable[tuple[Card, ...]],
    images: int,
    *,
    home: str,
    provenance: Mapping[str, Any],
    banners: tuple[str, ...] = (),
) -> None:
    """Write the pages, each from a group of `CARDS_PER_PAGE` images, and remove those that an earlier run had more.

    ``home`` is the file of the report to which they belong.
    """
    pages = count_pages(images)
    for number, cards in enumerate(groups):
        links = [Link("the report", home)]
        links += [Link("\u2039 before", name_page((number - 1) * CARDS_PER_PAGE))] if number else []
        links += [Link("next \u203a", name_page((number + 1) * CARDS_PER_PAGE))] if number + 1 < pages else []
        first = number * CARDS_PER_PAGE + 1
        last = min(first + CARDS_PER_PAGE - 1, images)
        which = f"Image {first:,}" if first == last else f"Images {first:,} to {last:,}"
        report = Report(
            title="Image by image" + (f", page {number + 1} of {pages}" if pages > 1 else ""),
            lead=(
                f"{which} of {images:,}, the whole beside its places at full resolution. Outline and colour of a "
                "finding tell its score; a picture enlarges with a click."
            ),
            sections=(Section("Images", cards=cards),),
            provenance=provenance,
            banners=banners,
            links=tuple(links),
        )
        write_report(report, out / name_page(number * CARDS_PER_PAGE))
    for number in itertools.count(pages):
        old = out / name_page(number * CARDS_PER_PAGE)
        if not old.is_file():
            break
        old.unlink()
