"""What schemathesis has to know beside the schema, for its short test and for the campaign `requests`."""

from collections.abc import Sequence

import schemathesis

# That an item does not exist is 400 or 404, whatever the schema says of its id.
# A wrong request of a batch has an error in its place; a made-up checksum is of no log (409). What a query says beside
# its parameters is not read.
CONFIG = schemathesis.Config.from_dict(
    {
        "generation": {"allow-extra-parameters": False},
        "checks": {
            "positive_data_acceptance": {"expected-statuses": ["2xx", 400, 404, 409]},
            "negative_data_rejection": {"expected-statuses": ["4xx"]},
        },
        "operations": [
            {"include-path": "/v1/recommend/batch", "checks": {"negative_data_rejection": {"enabled": False}}}
        ],
    }
)


def know_items(schema, items: Sequence[str]) -> None:
    """Puts known items in histories, so that not all requests end there."""

    @schema.hook
    def map_body(context, body):
        for one in [body, *(body.get("requests") or ())] if isinstance(body, dict) else ():
            history = one.get("history") if isinstance(one, dict) else None
            if isinstance(history, list) and one.get("history_format", "item_id") == "item_id":
                known = [items[len(entry) % len(items)] if isinstance(entry, str) else entry for entry in history]
                one["history"] = known
        return body
