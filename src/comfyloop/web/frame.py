"""What every page has around it: language, look, project, the way to the others, and the headers of the answer."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from comfyloop import __version__
from comfyloop.errors import ComfyLoopError
from comfyloop.models.memory import GIB
from comfyloop.records import BASE, Project
from comfyloop.serve.api.common import AskedProject
from comfyloop.serve.api.services import Services, Svc
from comfyloop.serve.engines.protocol import Engine
from comfyloop.web import assets, sentences
from comfyloop.web.diff import words_apart
from comfyloop.web.language import LANGUAGES, Words, preferred

NAVIGATION = (
    ("home", "/"),
    ("queue", "/queue"),
    ("data", "/data"),
    ("runs", "/runs"),
    ("versions", "/versions"),
    ("settings", "/settings"),
)
"""The pages in the order in which data flows: key of the words and address."""
LANGUAGE_COOKIE, THEME_COOKIE = "comfyloop_language", "comfyloop_theme"
THEMES = ("light", "dark")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Vary": "Accept-Encoding, Accept-Language, Cookie",
}
_PACK_FROM = 1400
"""Bytes; what fits into one packet is sent as it is."""


@dataclass(frozen=True)
class Desk:
    """A request for a page: who asks in which language about which project."""

    request: Request
    services: Services
    words: Words
    project: Project

    def url(self, path: str, **parameters: Any) -> str:
        """The address of a page or a call about the same project."""
        project = self.project.name
        asked = {name: value for name, value in parameters.items() if value not in (None, "")}
        if project != self.services.settings.project or path.startswith("/v1/"):
            asked = {"project": project, **asked}
        return f"{path}?{urlencode(asked, quote_via=quote)}" if asked else path

    def about(self, project: str) -> Desk:
        """The same request about another project: the one that a thing with an id of its own belongs to."""
        return (
            self
            if project == self.project.name
            else replace(self, project=self.services.router.project(project))
        )

    def engine(self) -> Engine | None:
        """What answers for the project; None: this service was started without it."""
        return self.services.router.engines.get(self.project.base_model)

    def version(self, number: int) -> str:
        return self.words("version.base") if number == BASE else f"v{number}"

    def show(self, template: str, page: str, **values: Any) -> HTMLResponse:
        """A page in its frame.

        Args:
            page: The key of the navigation that it belongs to.
        """
        others = [project.name for project in self.services.router.projects]
        shared = {
            "desk": self,
            "page": page,
            "project": self.project,
            "projects": others,
            "navigation": NAVIGATION,
            "signed": bool(self.services.settings.token),
        }
        return render(self.request, self.words, template, 200, {**shared, **values})


def words_for(request: Request) -> Words:
    chosen = request.cookies.get(LANGUAGE_COOKIE, "")
    return Words(preferred(chosen, request.headers.get("accept-language", "")))


def _desk(request: Request, services: Svc, project: AskedProject) -> Desk:
    return Desk(request, services, words_for(request), services.router.project(project))


Asked = Annotated[Desk, Depends(_desk)]


def render(
    request: Request, words: Words, template: str, status: int, values: Mapping[str, Any]
) -> HTMLResponse:
    """A template as an answer, packed where the browser takes that."""
    theme = request.cookies.get(THEME_COOKIE, "")
    known = {
        "t": words,
        "say": lambda sentence: sentences.say(sentence, words.language),
        "language": words.language,
        "theme": theme if theme in THEMES else "",
        "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
    }
    html = _environment().get_template(template).render(**known, **values)
    response = HTMLResponse(html, status, headers=dict(_HEADERS))
    if len(response.body) > _PACK_FROM and "gzip" in request.headers.get("accept-encoding", ""):
        response.body = gzip.compress(bytes(response.body), 5)
        response.headers["Content-Encoding"] = "gzip"
        response.headers["Content-Length"] = str(len(response.body))
    return response


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals |= {
        "static": assets.address,
        "languages": LANGUAGES,
        "release": __version__,
        "words_apart": words_apart,
        "gib": GIB,
    }
    environment.filters |= {"when": when, "number": number, "percent": percent, "shortened": shortened}
    return environment


def when(at: datetime | None, style: str = "relative") -> Markup:
    """A time; the page's script writes it as the reader's own clock and language do."""
    if at is None:
        return Markup("")
    utc = at.astimezone(UTC)
    return Markup('<time datetime="{}" data-when="{}">{}</time>').format(
        utc.isoformat(timespec="seconds"), style, f"{utc:%Y-%m-%d %H:%M} UTC"
    )


def number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def percent(share: float) -> str:
    return f"{share:.0%}".replace("-", "−")


def shortened(text: str, most: int = 160) -> str:
    """In one line, its end left out where it is long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1].rstrip() + "…"


def fault_of(error: ComfyLoopError, words: Words) -> tuple[str, str]:
    """What is wrong and how to mend it, in the reader's language where it has the words."""
    return sentences.say(error.message, words.language), sentences.say(error.hint, words.language)
