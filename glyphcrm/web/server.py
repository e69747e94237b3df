"""The page served to browsers of this machine; nothing is asked of any other."""

from __future__ import annotations

import socket
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glyphcrm.glyphs.fonts import default_font
from glyphcrm.web.page import STYLE

LARGEST_REQUEST = 8 << 20  # bytes: a text of a million characters is still told that it is too long
LOCAL = ("127.0.0.1", "localhost")
FONTS = ("system-ui", "GlyphCRM Song", "sans-serif")  # Gradio's own choice might ask the internet for them


def application(page: gr.Blocks, host: str) -> FastAPI:
    """Return the page with its font as a web application, for requests of bounded size.

    On a loopback address it answers to the names of this machine alone: a page of elsewhere whose name suddenly means
    127.0.0.1 gets nothing.
    """
    app = FastAPI(openapi_url=None)
    font = default_font().path

    @app.get("/song.otf")
    def song() -> FileResponse:
        return FileResponse(font, headers={"Cache-Control": "max-age=86400"})

    theme = gr.themes.Default(primary_hue="red", font=FONTS, font_mono=("ui-monospace", "monospace"))
    settings: dict[str, Any] = {"footer_links": [], "run_history": False, "ssr_mode": False, "max_file_size": 0}
    gr.mount_gradio_app(app, page, "/", theme=theme, css_paths=[STYLE], **settings)
    app.add_middleware(BoundedRequests)
    if host in LOCAL:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL))
    return app


class BoundedRequests:
    """Ends requests whose body is larger than `LARGEST_REQUEST`, whatever length they claim."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count what it brings."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        claimed = dict(scope["headers"]).get(b"content-length", b"0")
        if not claimed.isdigit() or int(claimed) > LARGEST_REQUEST:
            await _refuse(send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return message if size <= LARGEST_REQUEST else {"type": "http.disconnect"}

        await self.app(scope, counted, send)


async def _refuse(send: Send) -> None:
    await send({"type": "http.response.start", "status": 413, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b'{"detail": "the request is too large; shorten the text"}'})


def serve(page: gr.Blocks, listener: socket.socket, host: str) -> None:
    """Answer requests on a bound socket until Ctrl-C, which is raised."""
    config = uvicorn.Config(application(page, host), log_level="critical", timeout_graceful_shutdown=1)
    listener.listen()
    port = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    print(f"GlyphCRM's page is at http://{shown}:{port} (Ctrl-C ends it)", flush=True)
    uvicorn.Server(config).run(sockets=[listener])
    raise KeyboardInterrupt  # it returns for nothing else, though not always with this
