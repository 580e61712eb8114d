"""The API's bodies: what clients send and get, strictly read (no unknown field, no number that is a text) and bounded:
every list and text has a largest length, which the schema states beside the limits of `Settings`."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    WrapValidator,
    field_validator,
    model_validator,
)

_HALF = re.compile("[\ud800-\udfff]")
_INT64 = {"ge": -(2**63), "le": 2**63 - 1}  # what a column can hold
_MANY = 10_000  # entries of a list that a condition or a filter holds
_LARGEST_CHANGE = 100_000  # items
LARGEST_BATCH = 4096  # requests that are read, whatever a server's limit is
_FIELDS = 64  # of an object, more than any has: each unknown one is an error of its own
Name = Annotated[str, Field(max_length=4096)]  # an id, a title, a column, a value
Words = Annotated[str, Field(max_length=16_384)]  # what a user typed
Scalar = Name | Annotated[int, Field(**_INT64)] | float | bool
Operator = Literal["=", "==", "!=", "<", ">", "<=", ">=", "in", "not in"]
Values = Annotated[list[Scalar], Field(max_length=_MANY, fail_fast=True)]
Names = Annotated[list[Name], Field(max_length=_MANY, fail_fast=True)]
Condition = Annotated[tuple[Name, Operator, Scalar | Values], Field(strict=False)]


def texts_in(value, path: str = "") -> Iterator[tuple[str, str]]:
    """`(path, text)` of every text and every name of a field in JSON values, however deep."""
    left = [(path, value)]
    while left:
        path, one = left.pop()
        if isinstance(one, str):
            yield path.lstrip("."), one
        elif isinstance(one, dict):
            left += [(path, name) for name in one] + [(f"{path}.{name}", each) for name, each in one.items()]
        elif isinstance(one, list):
            left += [(f"{path}[{place}]", each) for place, each in enumerate(one)]


def check_characters(value) -> None:
    """Raises `ValueError` naming the path of a text that holds half a character: JSON can write one, UTF-8 cannot."""
    for path, text in texts_in(value):
        if half := _HALF.search(text):
            raise ValueError(f"{path!a}: {half[0]!a} is half a character (a lone surrogate): leave it out")


def _few(given):
    """Raises `ValueError` for an object of so many fields that to read them would take long."""
    if isinstance(given, dict) and len(given) > _FIELDS:
        raise ValueError(
            f"{len(given)} fields are more than an object here has: leave out those that /openapi.json lacks"
        )
    return given


class Body(BaseModel):
    """What clients send."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, given):
        return _few(given)


class FilterBody(Body):
    """What may be recommended (`llmrec.catalogue.filters.Filter`)."""

    exclude_seen: bool = Field(False, description="leave out the items of the history")
    allow: Names | None = Field(None, description="only these item ids")
    deny: Names | None = Field(None, description="none of these item ids")
    where: Annotated[list[Condition], Field(max_length=64, fail_fast=True)] | None = Field(
        None, description="conditions on columns, all of which hold", examples=[[["price", "<", 20]]]
    )
    at_most: Annotated[dict[Name, Annotated[int, Field(ge=1, le=2**31)]], BeforeValidator(_few)] | None = Field(
        None, max_length=16, description="at most so many items of one value of a column", examples=[{"brand": 2}]
    )


class Message(Body):
    """A turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=2**17)


class RecommendRequest(Body):
    """A history, a chat, or a task; and how many items of which kind."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"history": ["B0002YTLFE", "B000BQKBCK"], "k": 5, "filter": {"exclude_seen": True}}]
        }
    )

    history: list[Name] = Field([], fail_fast=True, description="what the user took, oldest first")
    history_format: Literal["item_id", "semid", "title"] = Field("item_id", description="what `history` holds")
    behaviours: Names | None = Field(None, description="the kind of interaction of every item of the history")
    behaviour: Name | None = Field(None, description="the kind of interaction to recommend for")
    domain: Name | None = Field(None, description="only items of this value of the column `domain`")
    messages: Annotated[list[Message], Field(min_length=1, max_length=256, fail_fast=True)] | None = Field(
        None, description="a chat, not a history"
    )
    task: Name | None = Field(None, description="a shipped prompt whose answer is an item", examples=["like_but"])
    about: Name | None = Field(None, description="of a task: the item id that it speaks of")
    wish: Words | None = Field(None, description="of a task: what the item should be like", examples=["cheaper"])
    query: Words | None = Field(None, description="of a search: what the user typed")
    intention: Words | None = Field(None, description="of a search: what the user intends")
    k: int = Field(10, ge=1, description="how many items")
    num_beams: Annotated[int, Field(ge=1)] | None = Field(None, description="width of the search, not the model's own")
    dense: Literal["", "rank", "cold", "alone"] | None = Field(
        None, description="of a history: what is done with dense scores, not what the model's folder says"
    )
    think: bool = Field(True, description="whether a model that thinks may do so")
    filter: FilterBody | None = None
    return_prompt: bool = Field(False, description="whether to return what the model read, and its thoughts")


def _or_error(value, read) -> RecommendRequest | ValidationError:
    try:
        return read(value)
    except ValidationError as error:
        return error


class BatchRequest(Body):
    """Independent requests that are searched together; one that cannot be read is its `ValidationError`."""

    requests: list[Annotated[RecommendRequest, WrapValidator(_or_error)]] = Field(
        min_length=1, max_length=LARGEST_BATCH
    )


class Change(Body):
    """Items that come or change, and items that go."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"put": [{"item_id": "B01", "price": 3.0}], "remove": ["B02"]}]}
    )

    put: list[dict[Name, JsonValue]] = Field(
        [],
        max_length=_LARGEST_CHANGE,
        fail_fast=True,
        description="`item_id` and columns; a new item needs `title`, and brings `semid` or `embedding` if it can",
    )
    remove: list[Name] = Field([], max_length=_LARGEST_CHANGE, fail_fast=True, description="item ids")

    @field_validator("put")
    @classmethod
    def _has_whole_characters(cls, put):
        check_characters(put)
        return put


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


class LogRow(BaseModel):
    """A version as the log holds it: its record, JSON, and the checksum over it and all before."""

    record: str
    chain: str


class RecordsResponse(BaseModel):
    """Versions that a follower lacks, oldest first."""

    rows: list[LogRow]
    waits: bool = Field(description="changes wait for who asks; where not, it should answer no user from what it has")


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
