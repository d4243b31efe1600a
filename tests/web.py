"""A client that talks to an ASGI application in memory, one request after the other."""

from functools import partial

import anyio
import httpx


class WebClient:
    """Asks an application as a browser would that keeps cookies; in a ``with`` block the application's life is run."""

    def __init__(self, app, base_url):
        self.app, self.base_url, self.cookies = app, base_url, httpx.Cookies()

    def request(self, method, path, **options):
        return anyio.run(partial(self._request, method, path, **options))

    async def _request(self, method, path, *, follow_redirects=True, **options):
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
        async with httpx.AsyncClient(
            transport=transport, base_url=self.base_url, cookies=self.cookies, follow_redirects=follow_redirects
        ) as client:
            answer = await client.request(method, path, **options)
            self.cookies = client.cookies
            return answer

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, **options):
        return self.request("POST", path, **options)
