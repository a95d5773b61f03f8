"""What the page calls: /comfyloop/… on ComfyUI's own server. The service's token stays here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

from aiohttp import web

from . import graph as graphs
from . import learnt
from .feedback import WRITE_PROMPT, of_pick, of_review
from .launch import from_own_page
from .pack import Pack
from .redact import redact
from .service import ServiceError
from .spool import SpoolError
from .suggest import check

Handler = Callable[[Pack, Any], Awaitable[Any]]
"""Given the body of a POST or the query of a GET, both objects; what it gives back is the answer."""

PATIENT = 600.0
"""Seconds for what a model writes."""
RECENT = 10
NEXT_EDIT = "Workflow:\n"
"""How the question about a workflow's next edit begins: its answer is no text to be rewritten."""


async def state(pack: Pack, query: Any) -> Any:
    """What the pack itself knows; asks nobody. A page says who it is."""
    pack.page(str(query.get("page", ""))[:200])
    config = pack.config
    live = pack.live.known(config.project)
    return {
        "url": config.url,
        "project": config.project,
        "author": config.author,
        "has_token": bool(config.token),
        "capturing": config.capturing,
        "excluded": config.excluded,
        "free_before_runs": config.free_before_runs,
        "connected": not pack.live.state,
        "why": pack.live.state or pack.delivery.state,
        "live": live.number if live else None,
        "waiting": pack.waiting,
        "problem": pack.problem,
        "refused": pack.refused,
        "service": await asyncio.to_thread(pack.launcher.state, config.url),
        "pauses": [pause.shown for pause in list(pack.pauses.values())],
    }


async def opened(pack: Pack, body: Any) -> Any:
    """Which workflow a page has open, before it queues it."""
    client = str(body["client"])[:200]
    pack.page(client)
    pack.capture.opened(client, str(body["workflow"])[:500])
    return {}


async def settings(pack: Pack, body: Any) -> Any:
    capture = body.pop("capturing", None)
    if capture is not None:
        name = str(body.get("project", pack.config.project))
        others = [other for other in pack.config.capture if other != name]
        body["capture"] = [*others, name] if capture else others
    await asyncio.to_thread(lambda: pack.change_settings(**body))
    return await state(pack, {})


async def start_service(pack: Pack, _: Any) -> Any:
    await asyncio.to_thread(pack.start_service)
    return await state(pack, {})


async def stop_service(pack: Pack, _: Any) -> Any:
    await asyncio.to_thread(pack.launcher.stop)
    return await state(pack, {})


async def service_log(pack: Pack, _: Any) -> Any:
    return {"text": await asyncio.to_thread(pack.launcher.log)}


async def project(pack: Pack, _: Any) -> Any:
    """What the sidebar tells of the service: projects, the live version and what made it, the loop."""
    service, name = pack.service(), pack.config.project
    projects = [p["name"] for p in (await service.get("/v1/projects"))["items"]]
    if name not in projects:
        raise ServiceError(f"There is no project {name!r}. There are: {', '.join(projects)}.", 404)
    live = await pack.live.refresh(name)
    found = await service.get(f"/v1/versions/{live.number}", project=name) if live.number else None
    return {
        "projects": projects,
        "live": live.number,
        "version": await _told(pack, found) if found else None,
        "loop": await service.get("/v1/loop", project=name),
    }


async def _told(pack: Pack, version: Any) -> Any:
    """What changed in a version: what it came from, the samples it learnt from, what the gate measured."""
    gate = version.get("gate") or {}
    samples = 0
    if version.get("snapshot"):
        snapshot = await pack.service().get(f"/v1/snapshots/{version['snapshot']}", project=version["project"])
        samples = snapshot["train"]
    return {
        "number": version["number"],
        "parent": version["parent"],
        "at": version.get("promoted_at") or version["created_at"],
        "samples": samples,
        "text": bool(version.get("text_adapter")),
        "image": bool(version.get("image_adapter")),
        "reasons": gate.get("reasons") or [],
        # parts that the gate found by itself are told where its whole report is
        "measures": [m for m in gate.get("measures") or [] if " " not in m["slice"] or "general" in m["slice"]],
    }


async def flags(pack: Pack, _: Any) -> Any:
    """What people are asked about feedback before it is learned."""
    return await pack.service(PATIENT).get("/v1/flags", project=pack.config.project)


async def answer_flag(pack: Pack, body: Any) -> Any:
    """Whose claim holds, "all" or "none"; what is still asked comes back."""
    told = {"project": pack.config.project, "keep": str(body["keep"])}
    return await pack.service(PATIENT).post(f"/v1/flags/{quote(str(body['id']), safe='')}", told)


async def recent(pack: Pack, _: Any) -> Any:
    """The last answers and grids, to be judged after the fact."""
    found = await pack.service().get("/v1/generations", project=pack.config.project, limit=3 * RECENT)
    start = WRITE_PROMPT.partition("{")[0]

    def short(generation: Any) -> Any:
        texts = [part["text"] for part in generation["messages"][-1]["content"] if part["type"] == "text"]
        question = "".join(texts)
        return {
            "question": question.removeprefix(start),
            "text": generation["answer"],
            "original": generation["answer"],
            "generation": generation["id"],
            "project": generation["project"],
            "about": "prompt" if question.startswith(start) else "answer",
            "version": f"{generation['project']}@{generation['version'] or 'base'}",
            **pack.judged.get(generation["id"], {}),
        }

    answers = [short(one) for one in found["items"]]
    return {
        "answers": [one for one in answers if not one["question"].startswith(NEXT_EDIT)][:RECENT],
        "grids": [
            {name: value for name, value in grid.items() if name not in ("files", "workflow")}
            for grid in reversed(list(pack.grids))
        ],
    }


async def review(pack: Pack, body: Any) -> Any:
    """An answer judged: kept first, then a node that waits goes on."""
    items = of_review(
        str(body.get("project") or pack.config.project),
        str(body.get("action", "")),
        str(body["text"]),
        str(body.get("original", "")),
        str(body.get("generation") or ""),
        str(body.get("about") or "answer"),
        rating=_rating(body.get("rating")),
        comment=str(body.get("comment") or ""),
    )
    return await _keep_and_go_on(pack, items, body)


async def pick(pack: Pack, body: Any) -> Any:
    """Images picked and rated: kept first, then a node that waits goes on."""
    shown = [str(sha) for sha in body["shown"]]
    picked = [str(sha) for sha in body.get("picked") or ()]
    given = {str(sha): _rating(value) for sha, value in (body.get("ratings") or {}).items()}
    ratings = {sha: stars for sha, stars in given.items() if stars is not None}
    if not set(picked) | set(ratings) <= set(shown):
        raise ValueError("An image was picked that was not shown.")
    items = of_pick(
        str(body.get("project") or pack.config.project),
        shown,
        picked,
        ratings,
        str(body.get("prompt") or ""),
        str(body.get("generation") or ""),
        str(body.get("reason") or ""),
        pack.workflow_of(shown) if pack.config.capturing else None,
    )
    pack.capture.picked(str(body.get("prompt_id") or ""), picked)
    return await _keep_and_go_on(pack, items, body, shown if items else [])


async def _keep_and_go_on(pack: Pack, items: list[Any], body: Any, shown: list[str] | None = None) -> Any:
    problem: SpoolError | None = None
    try:
        images = await asyncio.to_thread(pack.grid_images, shown or [])
        await asyncio.to_thread(pack.keep, items, images)
        pack.said(body)
    except SpoolError as error:  # the workflow goes on; the person is told
        problem = error
    pause = pack.pauses.get(str(body.get("pause") or ""))
    if pause is not None:
        pause.answer = body
    if problem is not None:
        raise problem
    return {"kept": len(items), "continued": pause is not None, "waiting": pack.waiting}


async def suggest(pack: Pack, body: Any) -> Any:
    """What the project's model would change in the open workflow; the page shows it, and applies it when told."""
    workflow, host = body["workflow"], pack.host
    if not isinstance(workflow, dict) or not all(isinstance(node, dict) for node in workflow.values()):
        raise ValueError("The workflow is not in ComfyUI's API form.")
    clean = graphs.without_data(redact(workflow, pack.config.excluded), host.kind_of)
    asked = {
        "model": pack.config.project,
        "workflow": clean,
        "near": [str(node) for node in body.get("near") or () if str(node) in clean],
        "aim": (str(body.get("aim") or "").strip() or graphs.aim_of_ends(clean, host.kind_of, host.define))[:2000],
    }
    answer = await pack.apart(pack.service(PATIENT).post("/v1/graph-edits", asked))
    try:
        check(workflow, answer["steps"] or (), host.define_now)
    except ValueError as error:
        answer |= {"steps": None, "problem": f"The model's answer cannot be done here: {error}."}
    return answer


async def retry(pack: Pack, _: Any) -> Any:
    """Send again what the service refused, say when the missing project has been made."""
    queued = await asyncio.to_thread(lambda: pack.spool().retry_refused())
    pack.loop.call_soon_threadsafe(pack.delivery.wake)
    return {"queued": queued}


async def refused(pack: Pack, _: Any) -> Any:
    found = await asyncio.to_thread(lambda: pack.spool().refused())
    return {"items": [entry["why"] for entry in found][-20:]}


async def rollback(pack: Pack, _: Any) -> Any:
    answer = await pack.service().post("/v1/rollback", {"project": pack.config.project})
    await pack.live.refresh(pack.config.project)
    return answer


def _refusal(sentence: str, status: int) -> web.Response:
    return web.json_response({"error": sentence}, status=status)


def _rating(value: Any) -> int | None:
    if value in (None, 0, ""):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 5:
        raise ValueError("A rating is a whole number from 1 to 5.")
    return value


HANDLERS: dict[tuple[str, str], Handler] = {
    ("GET", "state"): state,
    ("POST", "opened"): opened,
    ("POST", "settings"): settings,
    ("POST", "service/start"): start_service,
    ("POST", "service/stop"): stop_service,
    ("GET", "service/log"): service_log,
    ("GET", "project"): project,
    ("GET", "flags"): flags,
    ("POST", "flags"): answer_flag,
    ("GET", "recent"): recent,
    ("POST", "review"): review,
    ("POST", "pick"): pick,
    ("POST", "suggest"): suggest,
    ("POST", "retry"): retry,
    ("GET", "refused"): refused,
    ("POST", "rollback"): rollback,
    **learnt.HANDLERS,
}
FOR_OUR_PAGE_ALONE = (start_service, stop_service)


def add(routes: web.RouteTableDef, pack: Pack) -> None:
    """Add all routes; each answers JSON, errors as ``{"error": sentence}``."""
    for (method, path), handler in HANDLERS.items():
        routes.route(method, f"/comfyloop/{path}")(_answering(handler, pack))


def _answering(handler: Handler, pack: Pack) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        if handler in FOR_OUR_PAGE_ALONE and not (
            from_own_page(request.host, request.headers) and request.content_type == "application/json"
        ):
            return _refusal("Programs are started and ended from ComfyUI's own page alone, opened by its address.", 403)
        try:
            body = await request.json() if request.method == "POST" and request.can_read_body else dict(request.query)
            if not isinstance(body, dict):
                raise ValueError("The body must be a JSON object.")
            return web.json_response(await handler(pack, body))
        except ServiceError as error:
            return _refusal(str(error), 503 if error.away else 400)
        except SpoolError as error:
            return _refusal(str(error), 507)
        except OSError as error:
            return _refusal(f"The disk refused: {error.strerror}. Free some space, or mend its rights.", 507)
        except KeyError as error:
            return _refusal(f"The field {error} is missing.", 400)
        except (ValueError, TypeError) as error:
            return _refusal(str(error), 400)

    return answer
