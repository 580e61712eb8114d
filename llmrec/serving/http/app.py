"""`create_app`: the whole HTTP front."""

import time

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse

import llmrec
from llmrec.serving.http.catalogue_routes import catalogue_router
from llmrec.serving.http.errors import ApiError, install_error_handlers
from llmrec.serving.http.limits import ApiKeys, BodyLimit, Gate
from llmrec.serving.http.metrics import Metrics
from llmrec.serving.http.recommend_routes import recommend_router
from llmrec.serving.http.request_logs import RequestLog
from llmrec.serving.http.responses import errors
from llmrec.serving.http.schemas import Health, ModelList
from llmrec.serving.http.service import Service
from llmrec.serving.http.settings import Settings

_ADMIN = "/v1/catalogue"


def create_app(service: Service, settings: Settings, generate=None) -> FastAPI:
    """The ASGI application, for uvicorn.

    Args:
        service (`Service`): what is served; who made it closes it.
        settings (`Settings`).
        generate (`Generate`, *optional*): vLLM's serving objects for chats and completions
            (`llmrec.serving.http.openai_routes`); without it these routes do not exist.
    """
    metrics = Metrics()
    gate = Gate(settings.max_concurrent, settings.max_queue, settings.timeout_s)
    changes = Gate(1, settings.max_queue, settings.timeout_s)
    metrics.gauge("llmrec_running", "Recommendations that run.", lambda: gate.running)
    metrics.gauge("llmrec_waiting", "Recommendations that wait.", lambda: gate.waiting)
    metrics.gauge("llmrec_catalogue_version", "The current version.", lambda: service.current.number)
    metrics.gauge("llmrec_catalogue_items", "Items of the current version.", lambda: service.current.num_items)

    app = FastAPI(title="llmrec", version=llmrec.__version__, redirect_slashes=False, redoc_url=None)
    install_error_handlers(app)
    if settings.recommend:
        app.include_router(recommend_router(service, settings, gate, metrics))
    app.include_router(catalogue_router(service, changes))
    if generate is not None:
        from llmrec.serving.http.openai_routes import add_openai_routes

        chats = Gate(settings.max_concurrent, settings.max_queue, settings.timeout_s)
        metrics.gauge("llmrec_generating", "Chats and completions that run.", lambda: chats.running)
        add_openai_routes(app, service, generate, chats)
    created = int(time.time())

    @app.get("/v1/models", response_model=ModelList, responses=errors(401), tags=["server"])
    async def models():
        """The one model of this server."""
        model = {"id": settings.model, "object": "model", "created": created, "owned_by": "llmrec"}
        return JSONResponse({"object": "list", "data": [model]})

    @app.get("/health", response_model=Health, responses=errors(503), tags=["server"])
    async def health():
        """Whether requests can be answered."""
        try:
            service.check()
        except Exception as error:
            raise ApiError(503, f"an engine is down: {error}", code="engine", headers={"Retry-After": "5"}) from error
        return JSONResponse({"status": "ok", "catalogue_version": service.current.number})

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        tags=["server"],
    )
    async def prometheus():
        """In Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def keys_of(method: str, path: str) -> list[str]:
        if not path.startswith("/v1/"):
            return []
        ours = [key for key in (settings.api_key, settings.admin_key) if key is not None]
        if method == "POST" and path.startswith(_ADMIN):
            return ours[-1:]
        return ours if settings.api_key is not None else []

    def limit(path: str) -> int:
        return settings.max_catalogue_bytes if path == _ADMIN else settings.max_body_bytes

    app.add_middleware(ApiKeys, keys_of=keys_of)
    app.add_middleware(BodyLimit, limit=limit, timeout_s=settings.timeout_s)
    app.add_middleware(RequestLog, metrics=metrics)
    app.openapi = lambda: _schema(app, keys_of)
    return app


def _schema(app: FastAPI, keys_of) -> dict:
    """FastAPI's, with our 400 in the place of its 422, and with the key."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path, methods in schema["paths"].items():
            for method, operation in methods.items():
                operation["responses"].pop("422", None)
                if keys_of(method.upper(), path):
                    operation["security"] = [{"key": []}]
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = schema
    return app.openapi_schema
