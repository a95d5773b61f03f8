"""What the clients ask of a service, each call once: the blocking and the asynchronous client differ in how they wait.

A call yields requests, is handed their responses, and returns what it made of them, as httpx's `auth_flow` does.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import quote

import httpx

from comfyloop import modalities
from comfyloop.errors import ComfyLoopError, EngineUnavailable, InvalidInput, error_for
from comfyloop.media import data_urls
from comfyloop.records import (
    Feedback,
    Forgotten,
    GateReport,
    Generation,
    LoopStatus,
    QueueItem,
    Snapshot,
    Version,
    new_id,
)

CIRCLE = {"max_pattern_size": 32, "min_pattern_size": 2, "min_count": 12}
"""When an answer goes round in a circle and is ended: "a cat, a cat, a cat, …", and no list, table or code."""
FEEDBACK_BATCH = 200

T = TypeVar("T")


class Answer(NamedTuple):
    """What a model said, and what it was said by."""

    text: str
    generation: str
    version: str
    examples: tuple[str, ...] = ()  # feedback that helped


class HttpRequest(NamedTuple):
    """Arguments of httpx's `request`."""

    method: str
    path: str
    options: dict[str, Any]


Call: TypeAlias = Generator[HttpRequest, httpx.Response, T]


class Service:
    """Where calls go.

    Args:
        url: Of the service, e.g. "http://127.0.0.1:8265"; as OpenAI's clients have it, with /v1, it is the same.
        token: The service's token, where it asks for one.
        project: The project that calls are about; None: the service's default.
        timeout: Seconds that a request may take.
    """

    def __init__(
        self, url: str, token: str = "", project: str | None = None, *, timeout: float = 600.0
    ) -> None:
        whole = url.strip() if "://" in url else f"http://{url.strip()}"
        self.url = whole.rstrip("/").removesuffix("/v1").rstrip("/")
        self.project = project
        self._connection: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"authorization": f"Bearer {token}"} if token else {},
            "timeout": httpx.Timeout(timeout, connect=5.0),
            "trust_env": False,
        }


def call(at: Service, /, method: str, path: str, body: Any = None, **query: Any) -> Call[Any]:
    """Any route: the parsed JSON of its answer. `query` values that are None are left out."""
    params = {name: value for name, value in query.items() if value is not None}
    response = yield from _response(method, path, json=body, params=params)
    return response.json() if response.content else None


def _response(method: str, path: str, **options: Any) -> Call[httpx.Response]:
    response = yield HttpRequest(method, path, options)
    if response.status_code >= 400:
        raise error_of(response)
    return response


# --- asking and correcting


def ask(
    at: Service,
    question: str,
    images: Sequence[Path | bytes] = (),
    *,
    model: str | None = None,
    max_tokens: int = 256,
    examples: bool = True,
) -> Call[Answer]:
    """Greedy answer to one question about images (paths or the bytes of PNG, JPEG or WebP files).

    Args:
        examples: Let past edits of near questions help, where the service is set to that.
    """
    content = modalities.asked(question, [data_urls.encode(_bytes(image)) for image in images])
    body = {
        "model": model or (yield from _project(at)),
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "repetition_detection": CIRCLE,
        **({} if examples else {"examples": False}),
    }
    response = yield from call(at, "POST", "/v1/chat/completions", body)
    text, helped = response["choices"][0]["message"]["content"], tuple(response.get("examples", ()))
    # No text that is sent back may hold a NUL, which a small model does write now and then.
    return Answer(text.replace("\0", "\ufffd"), response["id"], response["system_fingerprint"], helped)


def send_feedback(at: Service, items: Sequence[Feedback]) -> Call[dict[str, list[str]]]:
    """Returns the ids that were `stored` and those that were there already (`duplicates`).

    What takes more than one request is checked in full before any of it is stored. Each request is then
    stored whole or not at all; sending everything again is safe.
    """
    receipt: dict[str, list[str]] = {"stored": [], "duplicates": []}
    bodies = [
        {"items": [item.model_dump(mode="json") for item in items[begin : begin + FEEDBACK_BATCH]]}
        for begin in range(0, len(items), FEEDBACK_BATCH)
    ]
    if len(bodies) > 1:
        for body in bodies:
            yield from call(at, "POST", "/v1/feedback", body, check=True)
    for body in bodies:
        stored = yield from call(at, "POST", "/v1/feedback", body)
        for name, ids in stored.items():
            receipt[name] += ids
    return receipt


def upload_image(at: Service, data: bytes) -> Call[str]:
    """Store an image; returns its SHA-256."""
    response = yield from _response("POST", "/v1/images", content=data)
    return str(response.json()["sha256"])


def put_bytes(at: Service, /, path: str, data: bytes, **query: Any) -> Call[Any]:
    """Send a piece of a file, about this client's project."""
    project = {} if at.project is None else {"project": at.project}
    response = yield from _response("PUT", path, content=data, params={**query, **project})
    return response.json() if response.content else None


def default_project(at: Service) -> Call[str]:
    """The name of the project that calls are about."""
    loop = yield from call(at, "GET", "/v1/loop", project=at.project)
    return str(loop["project"])


def _project(at: Service) -> Call[str]:
    return at.project or (yield from default_project(at))


def generation(at: Service, id: str) -> Call[Generation]:
    """What was asked and answered, by its id."""
    body = yield from call(at, "GET", f"/v1/generations/{quote(id, safe='')}")
    return Generation.model_validate(body)


def preferences(at: Service, id: str | None = None, text: str | None = None) -> Call[list[dict[str, Any]]]:
    """Those of the project in words, after writing `text` into the one called `id`, or, where there is no
    text, taking it away."""
    project = yield from _project(at)
    path = f"/v1/projects/{quote(project, safe='')}/preferences"
    if id is not None:
        one = f"{path}/{quote(id, safe='')}"
        if text is None:
            yield from call(at, "DELETE", one)
        else:
            yield from call(at, "PUT", one, {"text": text})
    return _items((yield from call(at, "GET", path)))


def flags(at: Service) -> Call[list[dict[str, Any]]]:
    """What people are asked about the feedback of the project."""
    return _items((yield from call(at, "GET", "/v1/flags", project=at.project)))


def answer_flag(at: Service, id: str, keep: str) -> Call[list[dict[str, Any]]]:
    """`keep`: the id of the feedback whose claim holds, "all" or "none". What still is asked."""
    body = {"project": at.project, "keep": keep}
    return _items((yield from call(at, "POST", f"/v1/flags/{quote(id, safe='')}", body)))


def queue(
    at: Service, *, state: str = "waiting", filter: str | None = None, limit: int | None = None
) -> Call[list[QueueItem]]:
    """What a person should look at, first what is most in doubt. `state`: "waiting", "left_out" or "decided"; `filter`:
    only what that one asks about; `limit`: the first so many."""
    items: list[QueueItem] = []
    after: str | None = None
    while True:
        most = min(1000, 1000 if limit is None else limit - len(items))
        query = {"project": at.project, "state": state, "filter": filter, "after": after, "limit": most}
        body = yield from call(at, "GET", "/v1/queue", **query)
        items += [QueueItem.model_validate(item) for item in body["items"]]
        after = body["next_after"]
        if after is None or len(items) == limit:
            return items


def decide(
    at: Service,
    decision: str,
    items: Sequence[str] = (),
    *,
    text: str | None = None,
    undoes: str | None = None,
    author: str = "local",
    id: str | None = None,
) -> Call[str]:
    """Decide about items of the review queue: "accept", "reject", "fix" one with another `text`, or "undo" the decision
    that is called `undoes`. Returns the decision's id, by which it can be taken back.

    Args:
        id: Its id; sending one twice decides once.
    """
    id = id or new_id("fb")
    body = {
        "id": id, "project": at.project, "author": author, "decision": decision, "items": list(items),
        "text": text, "undoes": undoes,
    }  # fmt: skip
    yield from call(at, "POST", "/v1/queue/decisions", body)
    return id


# --- the loop


def loop(at: Service) -> Call[LoopStatus]:
    """Where the loop of the project stands."""
    return LoopStatus.model_validate((yield from call(at, "GET", "/v1/loop", project=at.project)))


def start_turn(at: Service, *, consolidate: bool = False) -> Call[LoopStatus]:
    """Have the loop learn what was collected, now. `consolidate`: everything, from the base model."""
    body = {"project": at.project, "consolidate": consolidate}
    return LoopStatus.model_validate((yield from call(at, "POST", "/v1/loop", body)))


def forget(at: Service, /, **what: str | None) -> Call[Forgotten]:
    """Take back what `author` sent, one piece of `feedback`, or what a `sample` was made of."""
    body = yield from call(at, "POST", "/v1/forget", {"project": at.project, **what})
    return Forgotten.model_validate(body)


def snapshot(at: Service) -> Call[Snapshot]:
    """Make training data of what was collected, without training on it."""
    return Snapshot.model_validate((yield from call(at, "POST", "/v1/snapshots", project=at.project)))


def versions(at: Service) -> Call[tuple[int, list[Version]]]:
    """The live number, and the versions, newest first."""
    body = yield from call(at, "GET", "/v1/versions", project=at.project)
    return body["live"], [Version.model_validate(item) for item in body["items"]]


def image_adapter(at: Service, number: int) -> Call[bytes]:
    """A version's image LoRA, as ComfyUI's LoraLoader reads it.

    Raises:
        NotFound: The version changes the text side alone.
    """
    return (yield from _bytes_of(at, f"/v1/versions/{number}/image-adapter"))


def gate(at: Service, number: int) -> Call[GateReport]:
    """Judge a version against the live one."""
    body = yield from call(at, "POST", f"/v1/versions/{number}/gate", project=at.project)
    return GateReport.model_validate(body)


def gate_report(at: Service, number: int) -> Call[GateReport]:
    """What the gate said, without judging again. Raises NotFound when the version was never judged."""
    body = yield from call(at, "GET", f"/v1/versions/{number}/gate", project=at.project)
    return GateReport.model_validate(body)


def sheet(at: Service, number: int) -> Call[bytes]:
    """The contact sheet of a version's gate, a PNG. Raises NotFound when its image side was not judged."""
    return (yield from _bytes_of(at, f"/v1/versions/{number}/sheet"))


def promote(
    at: Service, number: int, *, force: bool = False, canary: float | None = None
) -> Call[dict[str, Any]]:
    """Make a version live. `canary`: for this share of the conversations only; 0 takes that back."""
    share = None if canary is None else str(canary)
    promoted: dict[str, Any] = yield from call(
        at,
        "POST",
        f"/v1/versions/{number}/promote",
        project=at.project,
        force=str(force).lower(),
        canary=share,
    )
    return promoted


def rollback(at: Service, to: int | None = None) -> Call[dict[str, Any]]:
    """Make the version live that was live before, or the one numbered `to`."""
    body: dict[str, Any] = yield from call(at, "POST", "/v1/rollback", {"project": at.project, "to": to})
    return body


def run_log(at: Service, run: str, offset: int = 0) -> Call[tuple[list[dict[str, Any]], int]]:
    """Log lines from a byte offset on, and the offset to go on from."""
    body = yield from call(at, "GET", f"/v1/runs/{quote(run, safe='')}/log", offset=offset)
    return body["lines"], body["next_offset"]


def ready(at: Service) -> Call[bool]:
    """Whether the service answers questions."""
    try:
        yield from call(at, "GET", "/readyz")
    except ComfyLoopError:
        return False
    return True


def is_sleeping(at: Service) -> Call[dict[str, Any]]:
    """Whether the project's engine has given its memory back (`is_sleeping`), and how long its last wake took."""
    body: dict[str, Any] = yield from call(at, "GET", "/is_sleeping", model=at.project)
    return body


# --- what they are made of


def page(
    at: Service, path: str, query: dict[str, Any]
) -> Call[tuple[list[dict[str, Any]], dict[str, Any] | None]]:
    """The items of one page of a listing, and the query of the next page; None: it was the last.

    Listings from the newest on have `next_before`, those from the oldest on `next_after`.
    """
    body = yield from call(at, "GET", path, project=at.project, **query)
    on = {name.removeprefix("next_"): body.get(name) for name in ("next_before", "next_after")}
    on = {name: value for name, value in on.items() if value is not None}
    return _items(body), query | on if on else None


def unreachable(at: Service, error: httpx.HTTPError | UnicodeEncodeError) -> ComfyLoopError:
    """What is raised where no answer came."""
    raised: ComfyLoopError
    if isinstance(error, UnicodeEncodeError):
        raised = InvalidInput(
            f"What is to be sent is no text: it has {error.object[error.start]!a}, "
            "a byte that is not UTF-8 or half of a character.",
            "Send whole Unicode characters; a file in another encoding is converted first.",
        )
    elif isinstance(error, httpx.TimeoutException):
        raised = EngineUnavailable(f"The service at {at.url} did not answer in time.", "Try again.")
    else:
        raised = EngineUnavailable(
            f"No service answers at {at.url}.", "Start it with `comfyloop up`, or give its --url."
        )
    raised.__cause__ = error
    return raised


def _items(body: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = body["items"]
    return items


def _bytes_of(at: Service, path: str) -> Call[bytes]:
    response = yield from _response("GET", path, params={"project": at.project} if at.project else None)
    return response.content


def _bytes(image: Path | bytes) -> bytes:
    return image.read_bytes() if isinstance(image, Path) else image


def error_of(response: httpx.Response) -> ComfyLoopError:
    code, message, hint = "", f"The service answered with status {response.status_code}.", ""
    with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
        body = response.json()
        if "ready" in body:  # /readyz
            message = " ".join(filter(None, [*dict.fromkeys(body["problems"].values()), body["storage"]]))
        else:
            fault = body["error"]
            code, message, hint = (
                str(fault.get("code")),
                str(fault["message"]),
                str(fault.get("hint") or fault.get("mend") or ""),
            )
    after = response.headers.get("retry-after")
    message = message.removesuffix(hint).strip()  # the wire's message has the hint in it
    return error_for(code, response.status_code, message, hint, float(after) if after else None)
