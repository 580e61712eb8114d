"""The API's bodies: what clients send and get, strictly read (no unknown field, no number that is a text)."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

_HALF = re.compile("[\ud800-\udfff]")  # of a character: JSON can write one alone, UTF-8 cannot
_INT64 = {"ge": -(2**63), "le": 2**63 - 1}  # what a column can hold
Scalar = str | Annotated[int, Field(**_INT64)] | float | bool
Operator = Literal["=", "==", "!=", "<", ">", "<=", ">=", "in", "not in"]
Condition = Annotated[tuple[str, Operator, Scalar | list[Scalar]], Field(strict=False)]


class Body(BaseModel):
    """What clients send."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _has_whole_characters(cls, value):
        left = [value]
        while left:
            one = left.pop()
            if isinstance(one, str) and (half := _HALF.search(one)):
                raise ValueError(f"{half[0]!r} is half a character (a lone surrogate): leave it out")
            left += [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, list) else ()
        return value


class FilterBody(Body):
    """What may be recommended (`llmrec.catalogue.filters.Filter`)."""

    exclude_seen: bool = Field(False, description="leave out the items of the history")
    allow: list[str] | None = Field(None, max_length=10_000, description="only these item ids")
    deny: list[str] | None = Field(None, max_length=10_000, description="none of these item ids")
    where: list[Condition] | None = Field(
        None, description="conditions on columns, all of which hold", examples=[[["price", "<", 20]]]
    )
    at_most: dict[str, Annotated[int, Field(ge=1, le=2**31)]] | None = Field(
        None, description="at most so many items of one value of a column", examples=[{"brand": 2}]
    )


class Message(Body):
    """A turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class RecommendRequest(Body):
    """A history, a chat, or a task; and how many items of which kind."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"history": ["B0002YTLFE", "B000BQKBCK"], "k": 5, "filter": {"exclude_seen": True}}]
        }
    )

    history: list[str] = Field([], description="what the user took, oldest first")
    history_format: Literal["item_id", "semid", "title"] = Field("item_id", description="what `history` holds")
    behaviours: list[str] | None = Field(None, description="the kind of interaction of every item of the history")
    behaviour: str | None = Field(None, description="the kind of interaction to recommend for")
    domain: str | None = Field(None, description="only items of this value of the column `domain`")
    messages: Annotated[list[Message], Field(min_length=1)] | None = Field(None, description="a chat, not a history")
    task: str | None = Field(None, description="a shipped prompt whose answer is an item", examples=["like_but"])
    about: str | None = Field(None, description="of a task: the item id that it speaks of")
    wish: str | None = Field(None, description="of a task: what the item should be like", examples=["cheaper"])
    query: str | None = Field(None, description="of a search: what the user typed")
    intention: str | None = Field(None, description="of a search: what the user intends")
    k: int = Field(10, ge=1, description="how many items")
    num_beams: Annotated[int, Field(ge=1)] | None = Field(None, description="width of the search, not the model's own")
    dense: Literal["", "rank", "cold", "alone"] | None = Field(
        None, description="of a history: what is done with dense scores, not what the model's folder says"
    )
    think: bool = Field(True, description="whether a model that thinks may do so")
    filter: FilterBody | None = None
    return_prompt: bool = Field(False, description="whether to return what the model read, and its thoughts")


class BatchRequest(Body):
    """Independent requests that are searched together."""

    requests: list[RecommendRequest] = Field(min_length=1)


class Change(Body):
    """Items that come or change, and items that go."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"put": [{"item_id": "B01", "price": 3.0}], "remove": ["B02"]}]}
    )

    put: list[dict[str, JsonValue]] = Field(
        [], description="`item_id` and columns; a new item needs `title`, and brings `semid` or `embedding` if it can"
    )
    remove: list[str] = Field([], description="item ids")


class Rollback(Body):
    """A version to return to; it gets a new number."""

    version: int = Field(ge=0, le=2**63 - 1)


class Error(BaseModel):
    """What is wrong and what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The shape of every answer that is no success."""

    error: Error


class BatchError(ErrorResponse):
    """In the place of one answer of a batch."""

    object: Literal["error"]


class ItemName(BaseModel):
    """An item."""

    item_id: str
    title: str | None
    semid: str


class RecommendedItem(ItemName):
    """A recommended item; scores are comparable within one request only."""

    score: float


class Timings(BaseModel):
    """Milliseconds."""

    total: float
    search: float
    queue: float


class RecommendResponse(BaseModel):
    """The best items, best first."""

    id: str
    object: Literal["recommendation"]
    created: int
    model: str
    catalogue_version: int
    items: list[RecommendedItem]
    complete: bool = Field(description="false where fewer than k items are allowed")
    message: str | None
    prompt: str | None
    thoughts: list[str] | None
    timings_ms: Timings


class BatchResponse(BaseModel):
    """An answer or an error for each request, in order."""

    object: Literal["list"]
    data: list[RecommendResponse | BatchError]


class ItemList(BaseModel):
    """Items whose titles hold the query."""

    object: Literal["list"]
    data: list[ItemName]


class ItemResponse(ItemName):
    """An item and all its columns."""

    catalogue_version: int
    columns: dict[str, Any]


class HistoryItem(BaseModel):
    """What made a version."""

    version: int
    time: str
    added: int
    updated: int
    removed: int
    rollback_of: int | None


class CatalogueResponse(BaseModel):
    """The current version."""

    version: int
    items: int
    columns: dict[str, str]
    history: list[HistoryItem]


class AddedItem(BaseModel):
    """A new item and the Semantic ID that it got."""

    item_id: str
    semid: str


class ChangeResponse(BaseModel):
    """What a version changed; it is durable, and every later request sees it."""

    version: int
    added: list[AddedItem]
    updated: list[str]
    removed: list[str]


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """As OpenAI's."""

    object: Literal["list"]
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok"]
    catalogue_version: int
