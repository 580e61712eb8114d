"""`create_app`: the whole HTTP front, but for chats and completions (`llmrec.serving.http.openai_routes`)."""

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.utils import get_openapi

import llmrec
from llmrec.serving.http import catalogue_routes, recommend_routes
from llmrec.serving.http.errors import ERROR_HANDLERS, ApiError, errors
from llmrec.serving.http.front import Front, TheFront
from llmrec.serving.http.middleware import Guard, RequestLog
from llmrec.serving.http.schemas import Health, ModelList
from llmrec.serving.http.service import Service
from llmrec.serving.http.settings import Settings

router = APIRouter(tags=["server"])


@router.get("/v1/models", response_model=ModelList, responses=errors(401))
async def models(front: TheFront):
    """The one model of this server."""
    model = {"id": front.settings.model, "object": "model", "created": front.started, "owned_by": "llmrec"}
    return {"object": "list", "data": [model]}


@router.get("/health", response_model=Health)
async def health(front: TheFront):
    """Whether the front is alive; `/ready` says whether it can answer."""
    return {"status": "ok", "catalogue_version": front.service.current.number}


@router.get("/ready", response_model=Health, responses=errors(503))
async def ready(front: TheFront):
    """Whether requests should be sent here: every engine is there, and answered the last time that it was asked, the
    catalogue is as fresh as it should be, and the server was not told to stop."""
    if front.leaving:
        raise ApiError(503, "this server was told to stop", code="leaving", headers={"Retry-After": "1"})
    front.check()
    front.service.fresh()
    return {"status": "ok", "catalogue_version": front.service.current.number}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def prometheus(front: TheFront):
    """In Prometheus' text format."""
    return Response(front.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def create_app(service: Service, settings: Settings, alone_s: float | None = None) -> FastAPI:
    """The ASGI application, for uvicorn; who made the service closes it. `alone_s`: see `Front`."""
    app = FastAPI(
        title="llmrec",
        version=llmrec.__version__,
        redirect_slashes=False,
        redoc_url=None,
        exception_handlers=ERROR_HANDLERS,
    )
    app.state.front = Front(service, settings, alone_s)
    if settings.recommend:
        app.include_router(recommend_routes.router)
    app.include_router(catalogue_routes.router)
    app.include_router(router)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(RequestLog, front=app.state.front)
    app.openapi = lambda: _schema(app, settings)
    return app


def _schema(app: FastAPI, settings: Settings) -> dict:
    """FastAPI's, with our 400 in the place of its 422, and with the key."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path, methods in schema["paths"].items():
            for method, operation in methods.items():
                operation["responses"].pop("422", None)
                if settings.keys_of(method.upper(), path) is not None:
                    operation["security"] = [{"key": []}]
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        if settings.recommend:
            _state_limits(schema["components"]["schemas"], settings)
        app.openapi_schema = schema
    return app.openapi_schema


def _state_limits(schemas: dict, settings: Settings) -> None:
    """Those of this server, which bodies are held against after they were read."""
    fields = schemas["RecommendRequest"]["properties"]
    fields["k"]["maximum"] = settings.max_k
    fields["num_beams"]["anyOf"][0]["maximum"] = settings.max_beams
    fields["history"]["maxItems"] = settings.max_history
    schemas["BatchRequest"]["properties"]["requests"]["maxItems"] = settings.max_batch
