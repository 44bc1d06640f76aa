"""GET: the documents of the API, and Swagger UI, which shows one of them as a page."""

import base64
import hashlib
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

from ingest.shim.documents import asyncapi_document, openapi_document

_ASSETS: Final = ("swagger-ui.css", "swagger-ui-bundle.js")
_SCRIPT: Final = """SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null, defaultModelsExpandDepth: 0
})"""
_DOCS_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Submitting tasks</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
<style>
  .swagger-ui .response-col_links { display: none }
  @media (max-width: 600px) {
    .swagger-ui .opblock .tab-header .tab-item:nth-of-type(n) { padding: 0 16px 0 0 }
    .swagger-ui .try-out__btn { margin-left: 0; padding: 5px 10px; white-space: nowrap }
  }
</style></head>
<body><div id="swagger-ui"></div><script src="/docs/assets/swagger-ui-bundle.js"></script>
<script>%s</script>
</body></html>
""".replace("%s", _SCRIPT)
_HEADERS: Final = {
    # Swagger UI sets style attributes, and its images are data.
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; "
    f"script-src 'self' 'sha256-{base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Of the page and its assets: it loads and runs nothing from elsewhere, and no other page can frame it."""
_swagger_ui: Final = StaticFiles(directory=swagger_ui_path)


def routes() -> list[Route]:
    """Return the routes. None of them needs an API key."""
    return [
        Route("/", _docs, methods=["GET"]),
        Route("/docs", _docs, methods=["GET"]),
        *[Route(f"/docs/assets/{name}", _asset, methods=["GET"]) for name in _ASSETS],
        Route("/openapi.json", _openapi, methods=["GET"]),
        Route("/asyncapi.json", _asyncapi, methods=["GET"]),
    ]


async def _docs(_: Request) -> Response:
    return HTMLResponse(_DOCS_PAGE, headers=_HEADERS)


async def _asset(request: Request) -> Response:
    answer = await _swagger_ui.get_response(request.scope["path"].rpartition("/")[2], request.scope)
    answer.headers.update(_HEADERS)
    return answer


async def _openapi(_: Request) -> Response:
    return Response(msgspec.json.encode(openapi_document()), media_type="application/json")


async def _asyncapi(_: Request) -> Response:
    return Response(msgspec.json.encode(asyncapi_document()), media_type="application/json")
