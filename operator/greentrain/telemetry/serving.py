"""Health and metrics over HTTP: alive, ready and why not, and what Prometheus scrapes."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from greentrain.telemetry.metrics import CONTENT_TYPE


async def serve(
    port: int,
    *,
    unhealthy: Callable[[], str | None],
    unready: Callable[[], str | None],
    render: Callable[[], bytes],
) -> web.AppRunner:
    """Serve `/healthz`, `/readyz` and `/metrics` on a port; the caller cleans the runner up.

    The first two answer 200, or 503 with the reason in a sentence.
    """

    async def healthz(_: web.Request) -> web.Response:
        return answer(unhealthy())

    async def readyz(_: web.Request) -> web.Response:
        return answer(unready())

    def answer(reason: str | None) -> web.Response:
        return web.Response(text="ok\n") if reason is None else web.Response(status=503, text=f"{reason}\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=render(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
