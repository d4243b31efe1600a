"""The application behind the review page: lists, pixels, heat maps, judgements and their export.

An image is asked for by its key alone. Answers that take time, reading a file above all, run in threads.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import io
import json
import tempfile
import threading
import zipfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from unary.clinic.review.export import JUDGEMENTS, export_judgements, write_judgements
from unary.clinic.review.judgements import LESION_NAMES, Judgement, JudgementStore, select_standing, tell_moment
from unary.clinic.review.pyramid import MAP_FILE, Pyramid, PyramidCache, SourceError, read_heat_map
from unary.clinic.review.results import ResultIndex, ReviewedImage, read_document
from unary.clinic.review.saying import NotThereError, build_judgement, read_said
from unary.clinic.review.telling import (
    find_threshold,
    gather_studies,
    tell_image,
    tell_judgements,
    tell_pyramid,
    tell_study,
)
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
_PICTURE = "findings.png"


def build_review_app(roots: Sequence[Path], judgements: Path, *, access: Access, cache_mib: int = 512) -> Starlette:
    """Return the review page as an ASGI application, to be served or mounted.

    Whoever mounts it runs its life as well, ``app.router.lifespan_context(app)``: it reads ahead what will be looked at
    first, and ends the processes that read.

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

    return JSONResponse({"error": str(error)}, 404 if isinstance(error, NotThereError) else 400)


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
                studies = gather_studies(self.index.list_images().values())
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
            raise NotThereError("no such file")
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
        studies = gather_studies(images.values())
        if request.query_params.get("sort") == "time":
            studies.sort(key=lambda study: max(image.moment for image in study), reverse=True)
        told = [tell_study(study, said) for study in studies[:_MOST_STUDIES]]
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
            raise NotThereError("this result has just been replaced; look again")
        shown: dict[str, Any] = {"state": "shown", "message": ""}
        try:
            shown |= tell_pyramid(self.cache.get(image), image)
        except SourceError as error:
            shown |= {"state": error.state, "message": str(error), "picture": (image.folder / _PICTURE).is_file()}
        known = {
            **tell_image(image),
            **shown,
            "file": document.file,
            "shape": document.stored_shape,
            "findings": [asdict(finding) for finding in document.findings],
            "operating_point": document.operating_point,
            "guarantee": document.guarantee,
            "out_of_domain": document.out_of_domain,
            "notes": document.notes,
            "model": {name: document.model.get(name, "")[:12] for name in ("detector", "version", "sha256")},
            "heat": (image.folder / MAP_FILE).is_file(),
            "judgements": tell_judgements(self.store, image),
        }
        return JSONResponse(known)

    def give_tile(self, request: Request) -> Response:
        from starlette.responses import Response

        where = request.path_params
        try:
            tile = self.cache.get(self._find(request)).cut_tile(where["level"], where["row"], where["col"])
        except SourceError as error:
            raise NotThereError(str(error)) from error
        if tile is None:
            raise NotThereError("no such tile")
        return Response(tile.astype("<u2", copy=False).tobytes(), media_type="application/octet-stream")

    def give_heat(self, request: Request) -> Response:
        from starlette.responses import Response

        image = self._find(request)
        document = read_document(image.folder)
        heat = document and read_heat_map(image.folder, threshold=find_threshold(document))
        if not heat:
            raise NotThereError("this result has no map; unary detect --maps writes it")
        scale = json.dumps({"shape": heat.shades.shape, "low": heat.low, "high": heat.high})
        return Response(heat.shades.tobytes(), media_type="application/octet-stream", headers={"x-unary-scale": scale})

    def give_picture(self, request: Request) -> Response:
        from starlette.responses import Response

        try:
            content = (self._find(request).folder / _PICTURE).read_bytes()
        except OSError as error:
            raise NotThereError("this result has no picture") from error
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

        said = read_said(body)
        image = self.index.find(said.image)
        document = None if image is None else read_document(image.folder)
        if image is None or document is None:
            raise NotThereError("no such image")
        self.store.add(build_judgement(said, image, document, self._find_pyramid(image)))
        return JSONResponse({"judgements": tell_judgements(self.store, image)})

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
            raise NotThereError("no such image")
        standing = {one.id: one for one in select_standing(self.store.list_all(image.sha256))}
        found = standing.get(number)
        if found is None or found.reader != asked.get("reader"):
            raise NotThereError("no such judgement of this reader")
        known = {**asdict(found), "id": None, "moment": tell_moment(), "verdict": "withdrawn", "withdraws": number}
        self.store.add(Judgement(**known))
        return JSONResponse({"judgements": tell_judgements(self.store, image)})

    def _find(self, request: Request) -> ReviewedImage:
        image = self.index.find(request.path_params["key"])
        if image is None:
            raise NotThereError("no such image")
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
