"""What the sidebar shows of what was learnt, and how it is taken back: versions, pieces of feedback, refused ones."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

from .pack import Pack
from .service import ServiceError

VERSIONS, PIECES, EXAMPLES = 20, 20, 3
SHORT = 200
"""Characters of a question or an answer, that a list shows."""


async def versions(pack: Pack, query: Any) -> Any:
    """The newest versions, what the gate said of each, and of the live one what changed. Its sentences in the page's
    language, where the service has them."""
    service, project = pack.service(), pack.config.project
    found = await service.get("/v1/versions", project=project, limit=VERSIONS)
    told = [_line(version, found["live"]) for version in found["items"]]
    live = next((version for version in found["items"] if version["number"] == found["live"]), None)
    examples = _changed((live or {}).get("gate") or {})
    sentences = [text for one in told for text in (one["reason"], one["next_step"]) if text]
    said = await _said(pack, sentences, str(query.get("language", "")))
    for one in told:
        one["reason"], one["next_step"] = (said.get(one[name], one[name]) for name in ("reason", "next_step"))
    return {"project": project, "live": found["live"], "versions": told, "changed": examples, "url": service.url}


def _line(version: Any, live: int) -> Any:
    gate = version.get("gate") or {}
    return {
        "number": version["number"],
        "state": "live" if version["number"] == live else version["state"],
        "at": version["created_at"],
        "verdict": gate.get("verdict") or "",
        "reason": (gate.get("reasons") or [""])[0],
        "next_step": gate.get("next_step") or "",
    }


def _changed(gate: Any) -> list[Any]:
    """Held-out questions on which the answer came nearest to what the person wanted."""
    items = []
    for item in gate.get("items") or ():
        before, after = item.get("live_answer") or "", item.get("candidate_answer") or ""
        distance = (item.get("scores") or {}).get("edit_distance")
        if not distance or before == after or not item.get("reference"):
            continue
        gain = distance[0] - distance[1]
        shown = {"question": _short(item["question"]), "before": _short(before), "after": _short(after)}
        items.append((gain, {**shown, "wanted": _short(item["reference"])}))
    items.sort(key=lambda pair: -pair[0])
    return [item for gain, item in items[:EXAMPLES] if gain > 0]


async def _said(pack: Pack, sentences: list[str], language: str) -> dict[str, str]:
    """Sentences in another language; a service without the desk knows none."""
    if not language or language.startswith("en") or not sentences:
        return {}
    try:
        answer = await pack.service().post("/v1/said", {"language": language[:2], "sentences": sentences})
    except ServiceError:
        return {}
    return dict(zip(sentences, answer["sentences"], strict=True))


async def promote(pack: Pack, body: Any) -> Any:
    """Make a version live: forward again after a roll back, or one that the gate did not."""
    number, project = int(body["version"]), pack.config.project
    force = "&force=true" if body.get("force") is True else ""
    path = f"/v1/versions/{number}/promote?project={quote(project, safe='')}{force}"
    answer = await pack.service().post(path, {})
    await pack.live.refresh(project)
    return answer


async def pieces(pack: Pack, _: Any) -> Any:
    """The newest pieces of feedback, as a person would know them again."""
    found = await pack.service().get("/v1/feedback", project=pack.config.project, limit=PIECES, newest="true")
    made = await asyncio.gather(*(_asked(pack, item) for item in found["items"]))
    return {"items": made}


async def _asked(pack: Pack, item: Any) -> Any:
    question, before = "", str(item.get("before") or "") if isinstance(item.get("before"), str) else ""
    if item.get("generation"):
        try:
            made = await pack.service().get(f"/v1/generations/{quote(item['generation'], safe='')}")
            texts = [part.get("text", "") for part in made["messages"][-1]["content"] if part["type"] == "text"]
            question, before = "".join(texts), made["answer"]
        except ServiceError:
            pass
    after = next((item[name] for name in ("edited", "after") if isinstance(item.get(name), str)), "")
    return {
        "id": item["id"],
        "kind": item["kind"],
        "author": item["author"],
        "at": item["created_at"],
        "question": _short(question or str(item.get("prompt") or "")),
        "before": _short(before),
        "after": _short(after),
        "rating": item.get("rating") or 0,
    }


async def forget(pack: Pack, body: Any) -> Any:
    told = {"project": pack.config.project, "feedback": str(body["feedback"])}
    answer = await pack.service().post("/v1/forget", told)
    await pack.live.refresh(pack.config.project)
    return answer


async def discard(pack: Pack, _: Any) -> Any:
    """Throw away what the service refused: a person has read why."""
    return {"discarded": await asyncio.to_thread(lambda: pack.spool().discard_refused())}


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SHORT else flat[: SHORT - 1].rstrip() + "…"


HANDLERS = {
    ("GET", "versions"): versions,
    ("POST", "promote"): promote,
    ("GET", "pieces"): pieces,
    ("POST", "forget"): forget,
    ("POST", "discard"): discard,
}
