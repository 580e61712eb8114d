"""How routes document what they may answer."""

from llmrec.serving.http.schemas import ErrorResponse

_TEXTS = {
    400: "The request says something that does not fit; `param` names the field.",
    401: "Wrong or missing key.",
    404: "There is no such item.",
    413: "The body is too large.",
    429: "Too many requests wait already.",
    503: "The engine is down, or there was no answer in time.",
}
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}


def errors(*statuses: int) -> dict:
    """The `responses` of a route that may answer with these statuses."""
    documented = {}
    for status in statuses:
        documented[status] = {"model": ErrorResponse, "description": _TEXTS[status]}
        if status in (429, 503):
            documented[status]["headers"] = _RETRY
    return documented
