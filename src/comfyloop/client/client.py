"""A Python client of a running service, for scripts, the CLI and the demo.

Chat itself is OpenAI's API: use the official `openai` client with `base_url=client.url + "/v1"`; here `ask`
is a short form of it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx

from comfyloop import modalities
from comfyloop.errors import (
    ComfyLoopError,
    EngineUnavailable,
    InvalidInput,
    NotFound,
    StorageError,
    error_for,
)
from comfyloop.media import data_urls
from comfyloop.records import Feedback, Forgotten, GateReport, Generation, LoopStatus, Snapshot, Version

CIRCLE = {"max_pattern_size": 32, "min_pattern_size": 2, "min_count": 12}
"""When an answer goes round in a circle and is ended: "a cat, a cat, a cat, …", and no list, table or code."""
FEEDBACK_BATCH = 200


class Answer(NamedTuple):
    text: str
    generation: str
    version: str
    examples: tuple[str, ...] = ()  # feedback that helped


class Client:
    """Calls to one service. Raises the errors of `comfyloop.errors` with the service's own sentences.

    Args:
        url: Of the service, e.g. "http://127.0.0.1:8265".
        token: The service's token, where it asks for one.
        project: The project that calls are about; None: the service's default.
    """

    def __init__(
        self, url: str, token: str = "", project: str | None = None, *, timeout: float = 600.0
    ) -> None:
        self.url = url.rstrip("/")
        self.project = project
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=httpx.Timeout(timeout, connect=5.0), trust_env=False
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Any route: the parsed JSON of its answer. `query` values that are None are left out."""
        params = {name: value for name, value in query.items() if value is not None}
        return self._send(method, path, json=body, params=params)

    def _send(self, method: str, path: str, **request: Any) -> Any:
        response = self._ask(method, path, **request)
        return response.json() if response.content else None

    def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **request)
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"What is to be sent is no text: it has {error.object[error.start]!a}, "
                "a byte that is not UTF-8 or half of a character.",
                "Send whole Unicode characters; a file in another encoding is converted first.",
            ) from error
        except httpx.TimeoutException as error:
            raise EngineUnavailable(
                f"The service at {self.url} did not answer in time.", "Try again."
            ) from error
        except httpx.HTTPError as error:
            raise EngineUnavailable(
                f"No service answers at {self.url}.", "Start it with `comfyloop up`, or give its --url."
            ) from error
        if response.status_code >= 400:
            raise _error(response)
        return response

    @contextlib.contextmanager
    def _streamed(self, method: str, path: str, **request: Any) -> Iterator[httpx.Response]:
        try:
            with self._http.stream(method, path, **request) as response:
                if response.status_code >= 400:
                    response.read()
                    raise _error(response)
                yield response
        except httpx.HTTPError as error:
            raise EngineUnavailable(
                f"The service at {self.url} broke off.", "Try again; `comfyloop status` says how it does."
            ) from error

    # --- asking and correcting

    def ask(
        self,
        question: str,
        images: Sequence[Path | bytes] = (),
        *,
        model: str | None = None,
        max_tokens: int = 256,
        examples: bool = True,
    ) -> Answer:
        """Greedy answer to one question about images (paths or the bytes of PNG, JPEG or WebP files).

        Args:
            examples: Let past edits of near questions help, where the service is set to that.
        """
        content = modalities.asked(question, [data_urls.encode(_bytes(image)) for image in images])
        body = {
            "model": model or self.project or self.default_project(),
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "repetition_detection": CIRCLE,
            **({} if examples else {"examples": False}),
        }
        given = self.call("POST", "/v1/chat/completions", body)
        text, helped = given["choices"][0]["message"]["content"], tuple(given.get("examples", ()))
        # No text that is sent back may hold a NUL, which a small model does write now and then.
        return Answer(text.replace("\0", "\ufffd"), given["id"], given["system_fingerprint"], helped)

    def send_feedback(self, items: Sequence[Feedback]) -> dict[str, list[str]]:
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
                self.call("POST", "/v1/feedback", body, check=True)
        for body in bodies:
            for name, ids in self.call("POST", "/v1/feedback", body).items():
                receipt[name] += ids
        return receipt

    def upload_image(self, data: bytes) -> str:
        """Store an image; returns its SHA-256."""
        return str(self._send("POST", "/v1/images", content=data)["sha256"])

    def put_bytes(self, path: str, data: bytes, **query: Any) -> Any:
        """Send a piece of a file, about this client's project."""
        if self.project is not None:
            query["project"] = self.project
        return self._send("PUT", path, content=data, params=query)

    def default_project(self) -> str:
        return str(self.call("GET", "/v1/loop", project=self.project)["project"])

    def generation(self, id: str) -> Generation:
        return Generation.model_validate(self.call("GET", f"/v1/generations/{id}"))

    def preferences(self, id: str | None = None, text: str | None = None) -> list[dict[str, Any]]:
        """Those of the project in words, after writing `text` into the one called `id`, or, where there is no
        text, taking it away."""
        path = f"/v1/projects/{self.project or self.default_project()}/preferences"
        if id is not None:
            one = f"{path}/{quote(id, safe='')}"
            if text is None:
                self.call("DELETE", one)
            else:
                self.call("PUT", one, {"text": text})
        items: list[dict[str, Any]] = self.call("GET", path)["items"]
        return items

    def flags(self) -> list[dict[str, Any]]:
        """What people are asked about the feedback of the project."""
        items: list[dict[str, Any]] = self.call("GET", "/v1/flags", project=self.project)["items"]
        return items

    def answer_flag(self, id: str, keep: str) -> list[dict[str, Any]]:
        """`keep`: the id of the feedback whose claim holds, "all" or "none". What still is asked."""
        body = {"project": self.project, "keep": keep}
        items: list[dict[str, Any]] = self.call("POST", f"/v1/flags/{quote(id, safe='')}", body)["items"]
        return items

    # --- the loop

    def loop(self) -> LoopStatus:
        return LoopStatus.model_validate(self.call("GET", "/v1/loop", project=self.project))

    def start_turn(self, *, consolidate: bool = False) -> LoopStatus:
        body = {"project": self.project, "consolidate": consolidate}
        return LoopStatus.model_validate(self.call("POST", "/v1/loop", body))

    def forget(self, **what: str | None) -> Forgotten:
        """Take back what `author` sent, one piece of `feedback`, or what a `sample` was made of."""
        return Forgotten.model_validate(self.call("POST", "/v1/forget", {"project": self.project, **what}))

    def snapshot(self) -> Snapshot:
        return Snapshot.model_validate(self.call("POST", "/v1/snapshots", project=self.project))

    def versions(self) -> tuple[int, list[Version]]:
        """The live number, and the versions, newest first."""
        found = self.call("GET", "/v1/versions", project=self.project)
        return found["live"], [Version.model_validate(item) for item in found["items"]]

    def image_adapter(self, number: int) -> bytes:
        """A version's image LoRA, as ComfyUI's LoraLoader reads it.

        Raises:
            NotFound: The version changes the text side alone.
        """
        path, params = f"/v1/versions/{number}/image-adapter", {"project": self.project}
        return self._ask("GET", path, params=params).content

    def gate(self, number: int) -> GateReport:
        return GateReport.model_validate(
            self.call("POST", f"/v1/versions/{number}/gate", project=self.project)
        )

    def gate_report(self, number: int) -> GateReport:
        """What the gate said, without judging again. Raises NotFound when the version was never judged."""
        return GateReport.model_validate(
            self.call("GET", f"/v1/versions/{number}/gate", project=self.project)
        )

    def sheet(self, number: int) -> bytes:
        """The contact sheet of a version's gate, a PNG. Raises NotFound when its image side was not judged."""
        found = self._ask(
            "GET", f"/v1/versions/{number}/sheet", params={"project": self.project} if self.project else None
        )
        return found.content

    def bundle_contents(self, number: int, wanted: dict[str, Any]) -> dict[str, Any]:
        """What a bundle of a version would hold: `manifest`, and `files` with their sizes."""
        told: dict[str, Any] = self.call(
            "POST", f"/v1/versions/{number}/bundle/contents", wanted, project=self.project
        )
        return told

    def export_bundle(self, number: int, target: Path, wanted: dict[str, Any]) -> None:
        """Write a version as a bundle; the file is there whole, or not at all.

        Raises:
            StorageError: The disk refuses.
        """
        params = {"project": self.project} if self.project else {}
        part = target.with_name(f".{target.name}.part")
        try:
            with (
                self._streamed(
                    "POST", f"/v1/versions/{number}/bundle", json=wanted, params=params
                ) as response,
                part.open("wb") as handle,
            ):
                for chunk in response.iter_raw(2**20):
                    handle.write(chunk)
            part.replace(target)
        except OSError as error:
            raise StorageError(f"{target} could not be written: {error.strerror or error}.") from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def import_bundle(self, file: Path, *, trust_new_key: bool = False) -> dict[str, Any]:
        """Take a bundle in as a candidate: `version`, `manifest`, and what is known of its key (`trust`).

        Raises:
            NotFound: There is no such file.
        """
        params = {"trust_new_key": str(trust_new_key).lower()}
        params |= {"project": self.project} if self.project else {}
        try:
            handle = file.open("rb")
        except OSError as error:
            raise NotFound(f"{file} cannot be read: {error.strerror}.", "Name a .comfyloop file.") from None
        with handle:
            headers = {"content-type": "application/zip", "content-length": str(file.stat().st_size)}
            chunks = iter(lambda: handle.read(2**20), b"")
            taken: dict[str, Any] = self._send(
                "POST", "/v1/bundles", content=chunks, params=params, headers=headers
            )
        return taken

    def promote(self, number: int, *, force: bool = False, canary: float | None = None) -> dict[str, Any]:
        """`canary`: for this share of the conversations only; 0 takes that back."""
        asked = {"project": self.project, "force": str(force).lower()}
        if canary is not None:
            asked["canary"] = str(canary)
        promoted: dict[str, Any] = self.call("POST", f"/v1/versions/{number}/promote", **asked)
        return promoted

    def rollback(self, to: int | None = None) -> dict[str, Any]:
        done: dict[str, Any] = self.call("POST", "/v1/rollback", {"project": self.project, "to": to})
        return done

    def run_log(self, run: str, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Log lines from a byte offset on, and the offset to go on from."""
        found = self.call("GET", f"/v1/runs/{run}/log", offset=offset)
        return found["lines"], found["next_offset"]

    def ready(self) -> bool:
        try:
            self.call("GET", "/readyz")
        except ComfyLoopError:
            return False
        return True

    def pages(self, path: str, key: str = "next_before", **query: Any) -> Iterator[dict[str, Any]]:
        """All items of a listing, page after page."""
        name = key.removeprefix("next_")
        while True:
            page = self.call("GET", path, project=self.project, **query)
            yield from page["items"]
            if page.get(key) is None:
                return
            query[name] = page[key]


def _bytes(image: Path | bytes) -> bytes:
    return image.read_bytes() if isinstance(image, Path) else image


def _error(response: httpx.Response) -> ComfyLoopError:
    code, message, hint = "", f"The service answered with status {response.status_code}.", ""
    with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
        body = response.json()
        if "ready" in body:  # /readyz
            message = " ".join(filter(None, [*dict.fromkeys(body["problems"].values()), body["storage"]]))
        else:
            told = body["error"]
            code, message, hint = (
                str(told.get("code")),
                str(told["message"]),
                str(told.get("hint") or told.get("mend") or ""),
            )
    after = response.headers.get("retry-after")
    message = message.removesuffix(hint).strip()  # the wire's message has the hint in it
    return error_for(code, response.status_code, message, hint, float(after) if after else None)
