"""Items and versions of the catalogue: `/v1/items`, `/v1/catalogue`."""

import math
from functools import partial
from typing import Annotated

import numpy as np
import pyarrow.compute as pc
from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from llmrec.serving.http import schemas
from llmrec.serving.http.errors import ApiError, errors
from llmrec.serving.http.followers import POLL_S
from llmrec.serving.http.front import Current, Front, TheFront
from llmrec.serving.http.limits import client_of, until_disconnect
from llmrec.serving.http.service import ChangeFailed, Served
from llmrec.serving.living_catalogue.store import Changes
from llmrec.serving.living_catalogue.values import to_json

router = APIRouter(tags=["catalogue"])
_CHANGE = errors(400, 401, 403, 409, 413, 429, 503)


@router.get("/v1/items", response_model=schemas.ItemList, responses=errors(400, 401, 429, 503))
async def items(
    request: Request,
    front: TheFront,
    served: Current,
    query: Annotated[str, Query(min_length=1, max_length=200, description="part of a title, in any case")],
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
):
    """Items whose titles hold a text, in the order of the catalogue."""
    call = partial(_titled, served, query, limit)
    [item_ids] = await until_disconnect(request, front.lookups.run([(1.0, call)], client_of(request)))
    return JSONResponse({"object": "list", "data": [*map(served.name, item_ids)]})


def _titled(served: Served, query: str, limit: int) -> list[str]:
    """Reads every title."""
    matches = pc.match_substring(served.version.items["title"], query, ignore_case=True)
    item_ids: dict[str, None] = {}
    for row in np.flatnonzero(matches.fill_null(False).to_numpy()):
        item_ids[served.version.index.item_ids[row]] = None
        if len(item_ids) == limit:
            break
    return [*item_ids]


@router.get("/v1/items/{item_id:path}", response_model=schemas.ItemResponse, responses=errors(400, 401, 404))
def item(item_id: str, served: Current):
    """An item with all its columns."""
    if item_id not in served.version.index:
        message = f"item {item_id!r} is not in the catalogue: find items at /v1/items?query="
        raise ApiError(404, message, "item_id", "unknown_item")
    name = served.name(item_id)
    return JSONResponse(name | {"catalogue_version": served.number, "columns": _columns(served, item_id)})


@router.get("/v1/catalogue", response_model=schemas.CatalogueResponse, responses=errors(400, 401))
def catalogue(
    served: Current,
    front: TheFront,
    limit: Annotated[int, Query(ge=1, le=1000, description="how many versions of the history")] = 100,
    before: Annotated[int | None, Query(ge=0, le=2**63 - 1, description="only versions before this one")] = None,
):
    """The current version, and what made the newest ones, oldest first; `before` the first of them are older ones."""
    columns = {field.name: str(field.type) for field in served.version.items.schema}
    state = {"version": served.number, "items": len(served.version.index.items), "columns": columns}
    return JSONResponse(state | {"history": front.service.store.history(limit, before)})


@router.get("/v1/catalogue/records", response_model=schemas.RecordsResponse, responses=errors(400, 401, 403, 409))
async def records(
    front: TheFront,
    after: Annotated[int, Query(ge=0, le=2**63 - 1, description="the last version that the other log has")],
    chain: Annotated[str, Query(max_length=128, description="its checksum there")],
    wait_s: Annotated[float, Query(ge=0, le=POLL_S, description="how long to wait for a new one")] = 0.0,
    follower: Annotated[str | None, Query(max_length=64, description="who asks, if it answers users")] = None,
    serving: Annotated[int, Query(ge=0, le=2**63 - 1, description="the version that it answers from")] = 0,
):
    """What the log of a server that follows this one lacks. Changes are acknowledged when those that ask have them;
    `waits` is false to one that is behind what was acknowledged, took too long, or says nothing of itself."""
    _refuse_follower(front)
    waits = False
    try:
        rows = await run_in_threadpool(front.service.store.rows_after, after, chain)
        if follower is not None:  # one that knows the checksum
            await run_in_threadpool(front.service.store.note_follower)
            waits = await front.followers.heard(follower, serving)
        if not rows and wait_s:
            await front.followers.wait(lambda: front.service.current.number > after, wait_s)
            rows = await run_in_threadpool(front.service.store.rows_after, after, chain)
    except ValueError as error:
        raise ApiError(409, str(error), "after") from error
    return JSONResponse({"rows": [row._asdict() for row in rows], "waits": waits})


@router.post("/v1/catalogue", response_model=schemas.ChangeResponse, responses=_CHANGE)
async def put_and_remove(body: schemas.Change, request: Request, front: TheFront):
    """Puts and removes items, all or none; answered when the version is durable and all later requests see it, those
    to followers too."""
    return await _changed(request, front, front.service.change, Changes(body.put, body.remove))


@router.post("/v1/catalogue/rollback", response_model=schemas.ChangeResponse, responses=_CHANGE)
async def rollback(body: schemas.Rollback, request: Request, front: TheFront):
    """Goes back to the content of an older version, under a new number."""
    return await _changed(request, front, front.service.rollback, body.version, "version")


async def _changed(request: Request, front: Front, change, argument, param: str | None = None) -> JSONResponse:
    _refuse_follower(front)
    front.check()
    async with front.changes.slot():
        try:
            record = await run_in_threadpool(change, argument)
            await front.followers.tell()
            await front.followers.have(record["number"])
        except ChangeFailed as error:
            front.check()
            raise ApiError(503, str(error), code="change_failed", headers={"Retry-After": "5"}) from error
        except ValueError as error:
            raise ApiError(400, str(error), param) from error
    request.state.log |= {"catalogue_version": record["number"]}
    with front.service.using() as served:
        added = [put["item_id"] for put in record["put"] if "codes" in put]
        return JSONResponse(
            {
                "version": record["number"],
                "added": [{"item_id": item, "semid": served.version.index.encode(item)} for item in added],
                "updated": [put["item_id"] for put in record["put"] if "codes" not in put],
                "removed": record["remove"],
            }
        )


def _refuse_follower(front: Front) -> None:
    if front.settings.follow is not None:
        raise ApiError(409, "this server follows another one: ask the writer of its catalogue", code="follower")


def _columns(served: Served, item_id: str) -> dict:
    row = served.version.index.row(item_id)
    columns = {}
    for name in served.version.items.column_names:
        cell = served.version.items[name].slice(row, 1)
        try:
            (value,) = to_json(cell, name)
        except ValueError:  # a type that only files can hold
            value = str(cell[0].as_py())
        columns[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return columns
