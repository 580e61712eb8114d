"""The HTTP API as the page needs it, and what goes wrong in words for the person in front of the page."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urlencode, urlsplit

from llmrec.instructions.prompts import fill, load_prompt


class ServerError(Exception):
    """The server refused or did not answer (HTTP status 0); the message is for people."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


class Client:
    """Calls one server, and waits `timeout` seconds at most; has no state, so one may serve many threads.

    Raises:
        ValueError: a URL that is not http or https.
    """

    def __init__(self, url: str, key: str = "", timeout: float = 60.0):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url is {url!r}, it should look like http://127.0.0.1:8000")
        self.url, self.key, self.timeout = url.rstrip("/"), key.strip(), timeout

    def with_key(self, key: str) -> "Client":
        """The same server, called with another key where there is one."""
        return Client(self.url, key, self.timeout) if key and key.strip() else self

    def models(self) -> list[str]:
        return [model["id"] for model in self.call("/v1/models")["data"]]

    def catalogue(self) -> dict:
        """`version`, number of `items`, and `columns` with their types."""
        return self.call("/v1/catalogue")

    def can_explain(self) -> bool:
        """Whether the server writes words as well (mode `generate`)."""
        return "/v1/chat/completions" in self.call("/openapi.json").get("paths", {})

    def search(self, query: str) -> list[dict]:
        return _titled(self.call(f"/v1/items?{urlencode({'query': query, 'limit': 20})}")["data"])

    def items(self, item_ids: Sequence[str]) -> list[dict]:
        """Items by id, with all their columns and the SemID as one string; raises for an unknown one."""
        with ThreadPoolExecutor(8) as pool:
            return _titled([*pool.map(lambda item: self.call(f"/v1/items/{quote(item, safe='')}"), item_ids)])

    def recommend(self, request: dict) -> dict:
        answer = self.call("/v1/recommend", request)
        return answer | {"items": _titled(answer["items"])}

    def explain(self, history: Sequence[str], item_id: str) -> str:
        """Why the item fits the history, in the words of the model."""
        messages = self.why(history, item_id)
        words = {"vllm_xargs": {"semid": "never"}, "max_tokens": 128, "temperature": 0}
        body = {"model": self.models()[0], "messages": messages, **words}
        choice = self.call("/v1/chat/completions", body)["choices"][0]
        return (choice["message"]["content"] or "").strip()

    def why(self, history: Sequence[str], item_id: str) -> list[dict]:
        """The chat that asks for an explanation, in the words that the model was trained with (task `explain`)."""
        prompt = load_prompt("explain")
        *before, item = self.items([*history, item_id])
        chosen = prompt.separator.join(other["semid"] for other in before)
        title = re.sub(r"<(?=[^<>\s]+>)", "< ", item["title"])  # what might be a token in it is read as text
        text = fill(prompt.templates[0].prompt, {"history": chosen, "item": item["semid"], "title": title})
        return [{"role": "system", "content": prompt.system}, {"role": "user", "content": text}]

    def call(self, path: str, body: dict | None = None) -> dict:
        """GET, or POST where there is a body; any answer but JSON with status 200 raises `ServerError`."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.url + path, data, headers)
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise ServerError(_in_words(error), error.code) from None
        except TimeoutError as error:
            raise ServerError(f"{self.url} has not answered within {self.timeout:.0f} seconds.") from error
        except OSError as error:
            start = "Start a server there (python -m llmrec.serving <model folder>) and press Reconnect."
            raise ServerError(f"Nothing answers at {self.url}. {start}") from error
        except ValueError as error:  # no JSON, or a key that no header can hold
            message = f"{self.url} answered with something that is not llmrec's API, or the key is odd."
            raise ServerError(message) from error


def _titled(items: Sequence[dict]) -> list[dict]:
    """Items with a title, empty where they have none, and the SemID as one string."""
    return [item | {"title": item.get("title") or "", "semid": "".join(item.get("semid") or "")} for item in items]


def _in_words(error: urllib.error.HTTPError) -> str:
    try:
        said = json.load(error)["error"]["message"]
    except (ValueError, KeyError, TypeError, OSError):
        said = error.reason
    wait = error.headers.get("Retry-After")
    again = f"Try again in {wait} seconds." if wait else "Try again in a moment."
    match error.code:
        case 401 | 403:
            return "This server wants an API key. Put it into the field “API key” (or LLMREC_API_KEY) and reconnect."
        case 429:
            return f"The server has more requests than it can take. {again}"
        case 502 | 503 | 504:
            return f"The server cannot answer now: {said}. {again}"
        case _:
            return f"The server says: {said}"
