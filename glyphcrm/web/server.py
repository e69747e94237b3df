"""The page served to browsers of this machine; nothing is asked of any other."""

from __future__ import annotations

import socket
from collections.abc import Collection
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse

from glyphcrm.glyphs.fonts import default_font
from glyphcrm.web.address import names_of
from glyphcrm.web.guard import Guard
from glyphcrm.web.page import STYLE

FONTS = ("system-ui", "GlyphCRM Song", "sans-serif")  # Gradio's own choice might ask the internet for them


def application(page: gr.Blocks, names: Collection[str] | None) -> FastAPI:
    """Return the page with its font as a web application, which answers to `names` of this machine, or to any."""
    app = FastAPI(openapi_url=None)
    font = default_font().path

    @app.get("/song.otf")
    def song() -> FileResponse:
        return FileResponse(font, headers={"Cache-Control": "max-age=86400"})

    theme = gr.themes.Default(primary_hue="red", font=FONTS, font_mono=("ui-monospace", "monospace"))
    settings: dict[str, Any] = {"footer_links": [], "run_history": False, "ssr_mode": False, "max_file_size": 0}
    gr.mount_gradio_app(app, page, "/", theme=theme, css_paths=[STYLE], **settings)
    app.add_middleware(Guard, names=names)
    return app


def serve(page: gr.Blocks, listener: socket.socket, host: str) -> None:
    """Answer requests on a bound socket until Ctrl-C, which is raised."""
    app = application(page, names_of(listener, host))
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    listener.listen()
    port = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    print(f"GlyphCRM's page is at http://{shown}:{port} (Ctrl-C ends it)", flush=True)
    uvicorn.Server(config).run(sockets=[listener])
    raise KeyboardInterrupt  # it returns for nothing else, though not always with this
