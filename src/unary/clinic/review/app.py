"""The application behind the review page: lists, pixels, heat maps, judgements and their export.

An image is asked for by its key alone. Answers that take time, reading a file above all, run in threads.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import io
import tempfile
import threading
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from unary.clinic.review.export import JUDGEMENTS, export_judgements, write_judgements
from unary.clinic.review.judgements import (
    LESION_NAMES,
    VERDICTS,
    Judgement,
    JudgementStore,
    Target,
    Verdict,
    select_standing,
    tell_moment,
)
from unary.clinic.review.pyramid import TILE_PX, Pyramid, PyramidCache, SourceError, read_heat_map
from unary.clinic.review.results import ResultDocument, ResultIndex, ReviewedImage, read_document
from unary.clinic.web_access import Access, Guard, read_body
from unary.errors import UnaryError, require
from unary.records import NOTICE

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_STATIC = {"review.css": "text/css", "icon.svg": "image/svg+xml"} | dict.fromkeys(
    ("main.js", "pane.js", "tiles.js", "findings.js", "keys.js"), "text/javascript"
)
_MOST_STUDIES = 500
_LONGEST_BODY = 200_000
_MOST_POINTS = 2000
_PICTURE = "findings.png"


@dataclass(frozen=True)
class _Said:
    """What the page sends when a reader has judged."""

    image: str
    target: Target
    verdict: Verdict
    reader: str
    rank: int | None = None
    name: str = "lesion"
    kind: Literal["contour", "point"] | None = None
    points: tuple[tuple[float, float], ...] = ()
    comment: str = ""


class _NotThereError(UnaryError):
    """What was asked for is not there."""


def build_review_app(roots: Sequence[Path], judgements: Path, *, access: Access, cache_mib: int = 512) -> Starlette:
    """Return the review page as an ASGI application, to be served or mounted.

    Parameters
    ----------
    roots
        Folders of results, or folders that have such below them. What comes later is seen without a restart.
    judgements
        The SQLite file for what readers say; made if it is not there.
    access
        Who may come in.
    cache_mib
        Memory for pixels.

    Raises
    ------
    UnaryError
        If judgements cannot be kept there.
    """
    require("starlette", extra="review")
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Route

    page = _Page(ResultIndex(roots), PyramidCache(roots, limit_mib=cache_mib), JudgementStore(judgements), access)

    @contextlib.asynccontextmanager
    async def living(_: Starlette) -> AsyncIterator[None]:
        page.warm()
        yield
        page.close()

    def get(path: str, answer: Callable[..., Any]) -> Route:
        return Route(path, _answering(answer), methods=["GET"])

    routes = [
        get("/", page.show),
        get("/static/{name}", page.give_static),
        get("/api/studies", page.list_studies),
        get("/api/images/{key}", page.describe),
        get("/api/images/{key}/tiles/{level:int}/{row:int}/{col:int}", page.give_tile),
        get("/api/images/{key}/heat", page.give_heat),
        get("/api/images/{key}/picture", page.give_picture),
        get("/export/judgements.csv", page.give_table),
        get("/export/manifest.zip", page.give_manifest),
        Route("/api/judgements", page.take, methods=["POST"]),
        Route("/api/judgements/{number:int}/withdrawal", page.withdraw, methods=["POST"]),
    ]
    app = Starlette(routes=routes, lifespan=living, middleware=[Middleware(Guard, access=access)])
    app.state.page = page
    return app


def _answering(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
    """The endpoint with what cannot be answered said as JSON; starlette runs it in a thread."""

    def respond(request: Request) -> Response:
        try:
            return answer(request)
        except UnaryError as error:
            return _refuse(error)

    return respond


def _refuse(error: UnaryError) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": str(error)}, 404 if isinstance(error, _NotThereError) else 400)


@dataclass(frozen=True)
class _Page:
    """What the endpoints share."""

    index: ResultIndex
    cache: PyramidCache
    store: JudgementStore
    access: Access

    def warm(self) -> None:
        """Read what will be looked at first, so that the first image is there when the page is."""

        def read() -> None:
            with contextlib.suppress(SourceError, UnaryError):
                studies = _gather_studies(self.index.list_images().values())
                for image in studies[0][:4] if studies else ():
                    self.cache.get(image)

        threading.Thread(target=read, name="unary-review-warm", daemon=True).start()

    def close(self) -> None:
        self.cache.close()
        self.store.close()

    def show(self, request: Request) -> Response:
        from starlette.responses import HTMLResponse, RedirectResponse

        if not request.scope["path"].endswith("/"):  # the page's links count from here
            return RedirectResponse(f"{request.scope.get('root_path', '')}/", 307)
        return HTMLResponse(_read_static("index.html"))

    def give_static(self, request: Request) -> Response:
        from starlette.responses import Response

        name = request.path_params["name"]
        if name not in _STATIC:
            raise _NotThereError("no such file")
        return Response(_read_static(name), media_type=_STATIC[name], headers={"cache-control": "no-cache"})

    def list_studies(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        images = self.index.list_images()
        version = f"{self.index.version}.{self.store.last()}"
        if request.query_params.get("since") == version:
            return JSONResponse({"version": version, "same": True})
        said: dict[str, list[Judgement]] = {}
        for one in select_standing(self.store.list_all()):
            said.setdefault(one.image_sha256, []).append(one)
        studies = _gather_studies(images.values())
        if request.query_params.get("sort") == "time":
            studies.sort(key=lambda study: max(image.moment for image in study), reverse=True)
        told = [_tell_study(study, said) for study in studies[:_MOST_STUDIES]]
        known = {
            "version": version,
            "studies": told,
            "total": len(studies),
            "unreadable": self.index.unreadable,
            "notice": NOTICE,
            "names": LESION_NAMES,
            "session": self.access.token is not None,
        }
        return JSONResponse(known)

    def describe(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        image = self._find(request)
        document = read_document(image.folder)
        if document is None:
            raise _NotThereError("this result has just been replaced; look again")
        shown: dict[str, Any] = {"state": "shown", "message": ""}
        try:
            shown |= _tell_pyramid(self.cache.get(image), image)
        except SourceError as error:
            shown |= {"state": error.state, "message": str(error), "picture": (image.folder / _PICTURE).is_file()}
        heat = read_heat_map(image.folder, threshold=_find_threshold(document))
        known = {
            **_tell_image(image),
            **shown,
            "file": document.file,
            "shape": document.stored_shape,
            "findings": [asdict(finding) for finding in document.findings],
            "operating_point": document.operating_point,
            "guarantee": document.guarantee,
            "out_of_domain": document.out_of_domain,
            "notes": document.notes,
            "model": {name: document.model.get(name, "")[:12] for name in ("detector", "version", "sha256")},
            "heat": heat and {"shape": heat.shades.shape, "low": heat.low, "high": heat.high},
            "judgements": _tell_judgements(self.store, image),
        }
        return JSONResponse(known)

    def give_tile(self, request: Request) -> Response:
        from starlette.responses import Response

        where = request.path_params
        try:
            tile = self.cache.get(self._find(request)).cut_tile(where["level"], where["row"], where["col"])
        except SourceError as error:
            raise _NotThereError(str(error)) from error
        if tile is None:
            raise _NotThereError("no such tile")
        return Response(tile.astype("<u2", copy=False).tobytes(), media_type="application/octet-stream")

    def give_heat(self, request: Request) -> Response:
        from starlette.responses import Response

        image = self._find(request)
        document = read_document(image.folder)
        heat = document and read_heat_map(image.folder, threshold=_find_threshold(document))
        if not heat:
            raise _NotThereError("this result has no map; unary detect --maps writes it")
        return Response(heat.shades.tobytes(), media_type="application/octet-stream")

    def give_picture(self, request: Request) -> Response:
        from starlette.responses import Response

        try:
            content = (self._find(request).folder / _PICTURE).read_bytes()
        except OSError as error:
            raise _NotThereError("this result has no picture") from error
        return Response(content, media_type="image/png")

    def give_table(self, _: Request) -> Response:
        with tempfile.TemporaryDirectory() as folder:
            write_judgements(self.store.list_all(), Path(folder, JUDGEMENTS))
            return _attach(Path(folder, JUDGEMENTS).read_bytes(), JUDGEMENTS, "text/csv; charset=utf-8")

    def give_manifest(self, _: Request) -> Response:
        content = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder:
            export_judgements(self.store.list_all(), self.index.list_images().values(), Path(folder))
            with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
                for path in sorted(Path(folder).glob("*.csv")):
                    archive.write(path, path.name)
        return _attach(content.getvalue(), "manifest.zip", "application/zip")

    async def take(self, request: Request) -> Response:
        from starlette.concurrency import run_in_threadpool

        try:
            body = await read_body(request.receive, _LONGEST_BODY)
            return await run_in_threadpool(self._keep, body)
        except UnaryError as error:
            return _refuse(error)

    def _keep(self, body: bytes) -> Response:
        from starlette.responses import JSONResponse

        said = _read_said(body)
        image = self.index.find(said.image)
        document = None if image is None else read_document(image.folder)
        if image is None or document is None:
            raise _NotThereError("no such image")
        self.store.add(_build_judgement(said, image, document, self._find_pyramid(image)))
        return JSONResponse({"judgements": _tell_judgements(self.store, image)})

    async def withdraw(self, request: Request) -> Response:
        from starlette.concurrency import run_in_threadpool

        try:
            body = await read_body(request.receive, _LONGEST_BODY)
            return await run_in_threadpool(self._take_back, request.path_params["number"], body)
        except UnaryError as error:
            return _refuse(error)

    def _take_back(self, number: int, body: bytes) -> Response:
        from starlette.responses import JSONResponse

        try:
            asked = msgspec.json.decode(body, type=dict[str, str])
        except msgspec.MsgspecError as error:
            raise UnaryError("image and reader are needed, as JSON") from error
        image = self.index.find(asked.get("image", ""))
        if image is None:
            raise _NotThereError("no such image")
        standing = {one.id: one for one in select_standing(self.store.list_all(image.sha256))}
        found = standing.get(number)
        if found is None or found.reader != asked.get("reader"):
            raise _NotThereError("no such judgement of this reader")
        known = {**asdict(found), "id": None, "moment": tell_moment(), "verdict": "withdrawn", "withdraws": number}
        self.store.add(Judgement(**known))
        return JSONResponse({"judgements": _tell_judgements(self.store, image)})

    def _find(self, request: Request) -> ReviewedImage:
        image = self.index.find(request.path_params["key"])
        if image is None:
            raise _NotThereError("no such image")
        return image

    def _find_pyramid(self, image: ReviewedImage) -> Pyramid | None:
        with contextlib.suppress(SourceError):
            return self.cache.get(image)
        return None


def _read_static(name: str) -> bytes:
    return (importlib.resources.files("unary.clinic.review") / "static" / name).read_bytes()


def _attach(content: bytes, name: str, kind: str) -> Response:
    from starlette.responses import Response

    return Response(content, media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'})


def _rank_image(image: ReviewedImage) -> tuple[float, float]:
    """What sorts images: the rarest first, among equally rare ones the highest score, what has none last."""
    rarity = 1.1 if image.image_p_value is None else image.image_p_value
    return rarity, float("inf") if image.image_score is None else -image.image_score


def _gather_studies(images: Iterable[ReviewedImage]) -> list[list[ReviewedImage]]:
    """Studies by their most abnormal image, and the images of each in the same order."""
    studies: dict[str, list[ReviewedImage]] = {}
    for image in images:
        studies.setdefault(image.study, []).append(image)
    ordered = [sorted(study, key=_rank_image) for study in studies.values()]
    return sorted(ordered, key=lambda study: (_rank_image(study[0]), study[0].key))


def _tell_image(image: ReviewedImage) -> dict[str, Any]:
    names = ("key", "name", "laterality", "view", "image_score", "image_p_value", "moment")
    return {name: getattr(image, name) for name in names}


def _tell_study(study: Sequence[ReviewedImage], said: dict[str, list[Judgement]]) -> dict[str, Any]:
    images = []
    for image in study:
        own = said.get(image.sha256, [])
        judged = {one.rank for one in own if one.target == "finding" and one.result == image.fingerprint}
        known = {"findings": image.findings, "judged": len(judged), "read": any(one.target == "image" for one in own)}
        known["missed"] = sum(one.target == "missed" for one in own)
        images.append({**_tell_image(image), **known, "version": image.fingerprint})
    return {"key": study[0].study, "label": study[0].study_label, "images": images}


def _tell_pyramid(pyramid: Pyramid, image: ReviewedImage) -> dict[str, Any]:
    side = image.laterality or pyramid.laterality
    return {
        "levels": [level.shape for level in pyramid.levels],
        "tile": TILE_PX,
        "offset": pyramid.offset,
        "step": pyramid.step,
        "window": pyramid.window,
        "spacing_mm": pyramid.spacing_mm,
        "laterality": side,
        "view": image.view or pyramid.view,
        "chest_wall": pyramid.chest_wall,
        # As radiologists hang them: right breasts on the left of the screen with their chest wall to the right.
        "mirrored": pyramid.chest_wall == {"R": "left", "L": "right"}.get(side or "", "neither"),
    }


def _find_threshold(document: ResultDocument) -> float | None:
    return None if document.operating_point is None else float(document.operating_point["threshold"])


def _tell_judgements(store: JudgementStore, image: ReviewedImage) -> list[dict[str, Any]]:
    """What holds of an image; of findings, only of those of this very result."""
    names = ("id", "moment", "reader", "target", "rank", "verdict", "name", "kind", "points", "comment")
    return [
        {name: getattr(one, name) for name in names}
        for one in select_standing(store.list_all(image.sha256))
        if one.target != "finding" or one.result == image.fingerprint
    ]


def _read_said(body: bytes) -> _Said:
    """What a reader has said, checked."""
    try:
        said = msgspec.json.decode(body, type=_Said)
    except msgspec.MsgspecError as error:
        raise UnaryError(f"not a judgement: {error}") from error
    if said.verdict not in VERDICTS[said.target]:
        raise UnaryError(f"of a {said.target} one says {' or '.join(VERDICTS[said.target])}, not {said.verdict}")
    reader = said.reader.strip()
    if not (0 < len(reader) <= 80 and reader.isprintable()):
        raise UnaryError("the reader's name is needed, of at most 80 printable characters")
    if said.name not in LESION_NAMES:
        raise UnaryError(f"name must be one of {', '.join(LESION_NAMES)}")
    if len(said.comment) > 1000 or len(said.points) > _MOST_POINTS:
        raise UnaryError("a comment of 1000 characters and an outline of 2000 points at most")
    drawn = len(said.points) == 1 if said.kind == "point" else said.kind == "contour" and len(said.points) >= 3
    if said.target == "missed" and not drawn:
        raise UnaryError("a place that was missed is a point, or a contour of three points or more")
    return said


def _build_judgement(said: _Said, image: ReviewedImage, document: ResultDocument, pyramid: Pyramid | None) -> Judgement:
    finding = next((one for one in document.findings if one.rank == said.rank), None)
    kind, points = said.kind, said.points
    if said.target == "finding":
        if finding is None:
            raise _NotThereError("no such finding")
        kind, points = "contour", finding.outline
    elif said.target == "image":
        kind, points = None, ()
    rows, cols = document.stored_shape
    if any(not (-1 <= row <= rows and -1 <= col <= cols) for row, col in points):
        raise UnaryError(f"a point lies outside the image of {rows} x {cols} pixels")
    spacing = document.stored_spacing_mm
    return Judgement(
        moment=tell_moment(),
        reader=said.reader.strip(),
        image=image.name,
        file=document.file,
        path=image.path if pyramid is None or pyramid.path is None else str(pyramid.path.absolute()),
        image_sha256=image.sha256,
        result=image.fingerprint,
        model_sha256=image.model_sha256,
        study=image.study,
        patient=None if pyramid is None else pyramid.patient,
        laterality=image.laterality,
        view=image.view,
        spacing_mm=None if spacing is None or spacing[0] != spacing[1] else spacing[0],
        target=said.target,
        rank=said.rank if said.target == "finding" else None,
        verdict=said.verdict,
        name=said.name,
        kind=kind,
        points=points,
        score=None if finding is None else finding.score,
        p_value=None if finding is None else finding.p_value,
        comment=said.comment,
    )
