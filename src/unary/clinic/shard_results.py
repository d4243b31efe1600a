"""Reading what `unary.clinic.archive` has written: as tables, image by image, and as monitoring takes results.

What is read is what ``run.json`` lists, each table checked by the hash in its shard's record. Shards of former
manifests in the same folder play no part.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.clinic.archive import read_run
from unary.clinic.shard_tables import COLUMNS, build_schema, hash_and_measure
from unary.clinic.shards import SHARDS, ShardRecord
from unary.clinic.shards import read_record as find_record
from unary.clinic.storage import Store
from unary.errors import UnaryError
from unary.images.attributes import Acquisition
from unary.patches.grid import Origins
from unary.patches.measures import TissueValues
from unary.records import Detection, Finding

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class StoredImage:
    """What the tables hold of one image.

    Attributes
    ----------
    facts
        Its row of the images, by column.
    moment
        When it was examined.
    candidates
        Its rows of the candidates, by rank.
    origins, scores
        Shape (n, 2), int32, and (n,), float64: of its patches, on the working grid.
    """

    facts: Row
    moment: str
    candidates: Sequence[Row]
    origins: Origins
    scores: NDArray[np.float64]

    def build_detection(self, find_p_value: Any = None) -> Detection:
        """Return the candidates as findings with their label image, as they were when the image was examined.

        P-values, None without ``find_p_value``, are what this makes of scores.
        """
        labels = np.zeros((self.facts["stored_rows"], self.facts["stored_cols"]), np.uint8)
        findings = []
        for row in self.candidates:
            box = (row["r0"], row["c0"], row["r1"], row["c1"])
            own = labels[box[0] : box[2], box[1] : box[3]]
            packed = np.frombuffer(row["pixels"], np.uint8)
            own[np.unpackbits(packed, count=own.size).reshape(own.shape).astype(bool)] = row["rank"]
            points = tuple(zip(row["outline"][::2], row["outline"][1::2], strict=True))
            p_value = None if find_p_value is None else find_p_value(row["score"])
            place = (box, points, (row["peak_row"], row["peak_col"]), row["regions"])
            size = (row["area_mm2"], row["diameter_mm"], row["kind"])
            findings.append(Finding(row["rank"], row["score"], p_value, *place, *size))
        score = self.facts["image_score"]
        p_value = None if find_p_value is None or score is None else find_p_value(score)
        domain, notes = (tuple(self.facts[name] or ()) for name in ("out_of_domain", "notes"))
        return Detection(tuple(findings), labels, score, p_value, None, domain, notes)


@dataclass(frozen=True)
class ArchiveResults:
    """The results of an archive, in the order of its manifest.

    Attributes
    ----------
    run
        What ``run.json`` says.
    """

    store: Store
    run: Mapping[str, Any]

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the shards that are done."""
        return tuple(each["name"] for each in self.run["shards"] if each["done"])

    def read(self, table: str, columns: Sequence[str] | None = None) -> Any:
        """Return a table, ``"images"``, ``"findings"``, ``"candidates"`` or ``"patches"``, as a `pyarrow.Table`.

        Parameters
        ----------
        columns
            By default all.

        Raises
        ------
        UnaryError
            If there is no such table, or a file is missing, or not what was written; it is named.
        """
        import pyarrow

        if table not in COLUMNS:
            raise UnaryError(f"no table {table!r}; there are {', '.join(COLUMNS)}")
        schema = build_schema(table)
        if columns is not None:
            schema = pyarrow.schema([schema.field(name) for name in columns], metadata=schema.metadata)
        parts = [self.read_shard(self.read_record(name), table, columns) for name in self.shards]
        return pyarrow.concat_tables([schema.empty_table(), *parts])

    def read_images(self) -> Iterator[StoredImage]:
        """Yield what the tables hold of each image, those without a result included; a shard at a time is in memory."""
        for name in self.shards:
            record = self.read_record(name)
            tables = {table: self.read_shard(record, table) for table in ("images", "candidates", "patches")}
            candidates: dict[str, list[Row]] = {}
            for row in tables["candidates"].to_pylist():
                candidates.setdefault(row["image"], []).append(row)
            patches = dict(_split_patches(tables["patches"]))
            nothing = (np.zeros((0, 2), np.int32), np.zeros(0))
            for facts in tables["images"].to_pylist():
                image = facts["image"]
                yield StoredImage(facts, record.moment, candidates.get(image, ()), *patches.get(image, nothing))

    def read_record(self, name: str) -> ShardRecord:
        """Return the record of a shard; a `UnaryError` if it is not what was written."""
        record = find_record(self.store, name)
        if record is None:
            raise UnaryError(
                f"{self.store.show(f'{SHARDS}/{name}')}: its record is missing, damaged, or edited; the command that "
                "wrote it makes it anew"
            )
        return record

    def read_shard(self, record: ShardRecord, table: str, columns: Sequence[str] | None = None) -> Any:
        """Return a table of one shard; raises as `read`."""
        import pyarrow.parquet

        name = f"{SHARDS}/{record.name}/{table}.parquet"
        content = self.store.read(name)
        if content is None or hash_and_measure(content) != record.files.get(f"{table}.parquet"):
            what = "missing" if content is None else "not what was written"
            raise UnaryError(f"{self.store.show(name)}: {what}; the command that wrote it makes it anew")
        return pyarrow.parquet.read_table(
            io.BytesIO(content), columns=None if columns is None else list(columns), schema=None
        )


def _split_patches(table: Any) -> Iterator[tuple[str, tuple[Origins, NDArray[np.float64]]]]:
    """The patches of each image, which lie together."""
    names = table["image"].combine_chunks().dictionary_encode()
    codes = names.indices.to_numpy(zero_copy_only=False)
    origins = np.stack([table[axis].to_numpy() for axis in ("row", "col")], axis=1).astype(np.int32)
    scores = table["score"].to_numpy()
    ends = [*(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)] if len(codes) else []
    first = 0
    for last in ends:
        yield names.dictionary[int(codes[first])].as_py(), (origins[first:last], np.array(scores[first:last]))
        first = last


def read_results(place: Path | str) -> ArchiveResults:
    """Return the results of `unary detect --engine` in a folder, or at a URL.

    Examples
    --------
    ``unary.read_results("DIR").read("images")`` is a `pyarrow.Table`; its ``to_pandas()`` a data frame.

    Raises
    ------
    UnaryError
        If there are none, or of another version.
    """
    store = Store(str(place))
    return ArchiveResults(store, read_run(store))


def list_monitored(results: ArchiveResults) -> Iterator[dict[str, Any]]:
    """Yield of each image with a result what monitoring takes from a ``result.json``."""
    run = results.run
    for name in results.shards:
        record = results.read_record(name)
        for facts in results.read_shard(record, "images").to_pylist():
            if facts["reason"] is not None:
                continue
            spacing = (facts["row_spacing_mm"], facts["col_spacing_mm"])
            tissue = {field.name: facts[f"tissue_{field.name}"] for field in fields(TissueValues)}
            acquisition = {field.name: facts[field.name] for field in fields(Acquisition)}
            yield {
                "_name": facts["image"],
                "made_from": {**record.made_from, "sha256": facts["sha256"]},
                "model": run["model"],
                "operating_point": run["operating_point"],
                "moment": record.moment,
                "study": facts["study"],
                "instance": facts["instance"],
                "acquisition": acquisition if facts["has_header"] else None,
                "stored_spacing_mm": None if None in spacing else spacing,
                "image_score": facts["image_score"],
                "findings": [None] * facts["findings"],
                "tissue": None if tissue["level"] is None else tissue,
            }
