"""Items and versions of the catalogue: `/v1/items`, `/v1/catalogue`."""

import math
from typing import Annotated

import numpy as np
import pyarrow.compute as pc
from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from llmrec.serving.http.errors import ApiError
from llmrec.serving.http.limits import Gate
from llmrec.serving.http.responses import errors
from llmrec.serving.http.schemas import (
    CatalogueResponse,
    Change,
    ChangeResponse,
    ItemList,
    ItemResponse,
    Rollback,
)
from llmrec.serving.http.service import ChangeFailed, Served, Service
from llmrec.serving.living_catalogue.store import Changes
from llmrec.serving.living_catalogue.values import to_json


def catalogue_router(service: Service, gate: Gate) -> APIRouter:
    """The routes that show and change the catalogue; changes take their turn in `gate`."""
    router = APIRouter(tags=["catalogue"])

    @router.get("/v1/items", response_model=ItemList, responses=errors(400, 401))
    def items(
        query: Annotated[str, Query(min_length=1, max_length=200, description="part of a title, in any case")],
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ):
        """Items whose titles hold a text, in the order of the catalogue."""
        with service.using() as served:
            matches = pc.match_substring(served.version.items["title"], query, ignore_case=True)
            found: dict[str, None] = {}
            for row in np.flatnonzero(matches.fill_null(False).to_numpy()):
                found[served.version.index.item_ids[row]] = None
                if len(found) == limit:
                    break
            return JSONResponse({"object": "list", "data": [*map(served.name, found)]})

    @router.get("/v1/items/{item_id:path}", response_model=ItemResponse, responses=errors(400, 401, 404))
    def item(item_id: str):
        """An item with all its columns."""
        with service.using() as served:
            if not served.version.has(item_id):
                message = f"item {item_id!r} is not in the catalogue: find items at /v1/items?query="
                raise ApiError(404, message, "item_id", "unknown_item")
            name = served.name(item_id)
            return JSONResponse(name | {"catalogue_version": served.number, "columns": _columns(served, item_id)})

    @router.get("/v1/catalogue", response_model=CatalogueResponse, responses=errors(401))
    def catalogue():
        """The current version, and what made the ones before."""
        with service.using() as served:
            history = [
                {"version": entry.number, **{name: getattr(entry, name) for name in entry._fields[1:]}}
                for entry in service.store.history()
            ]
            columns = {field.name: str(field.type) for field in served.version.items.schema}
            return JSONResponse(
                {"version": served.number, "items": served.num_items, "columns": columns, "history": history}
            )

    async def change(request: Request, call, argument, param: str | None) -> dict:
        async with gate.slot():
            try:
                record = await run_in_threadpool(call, argument)
            except ChangeFailed as error:
                headers = {"Retry-After": "5"}
                raise ApiError(503, str(error), code="change_failed", headers=headers) from error
            except ValueError as error:
                raise ApiError(400, str(error), param) from error
        request.state.log |= {"catalogue_version": record["number"]}
        return record

    @router.post("/v1/catalogue", response_model=ChangeResponse, responses=errors(400, 401, 413, 429, 503))
    async def put_and_remove(body: Change, request: Request):
        """Puts and removes items, all or none; answered when the version is durable and all later requests see it."""
        record = await change(request, service.change, Changes(body.put, body.remove), None)
        return _changed(record, service)

    @router.post("/v1/catalogue/rollback", response_model=ChangeResponse, responses=errors(400, 401, 413, 429, 503))
    async def rollback(body: Rollback, request: Request):
        """Goes back to the content of an older version, under a new number."""
        record = await change(request, service.rollback, body.version, "version")
        return _changed(record, service)

    return router


def _changed(record: dict, service: Service) -> JSONResponse:
    with service.using() as served:
        added = [put["item_id"] for put in record["put"] if "codes" in put]
        return JSONResponse(
            {
                "version": record["number"],
                "added": [{"item_id": item, "semid": served.version.index.encode(item)} for item in added],
                "updated": [put["item_id"] for put in record["put"] if "codes" not in put],
                "removed": record["remove"],
            }
        )


def _columns(served: Served, item_id: str) -> dict:
    row = served.version.rows_of(item_id)[0]
    columns = {}
    for name in served.version.items.column_names:
        cell = served.version.items[name].slice(row, 1)
        try:
            (value,) = to_json(cell, name)
        except ValueError:  # a type that only files can hold
            value = str(cell[0].as_py())
        columns[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return columns
