"""What the page calls: /comfyloop/… on ComfyUI's own server. The service's token stays here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from .feedback import of_pick, of_review
from .service import ServiceError
from .spool import SpoolError

if TYPE_CHECKING:
    from .pack import Pack

Work = Callable[[Any], Awaitable[Any]]


def add(routes: web.RouteTableDef, pack: Pack) -> None:
    """Add all routes; each answers JSON, errors as ``{"error": sentence}``."""

    def route(method: str, path: str) -> Callable[[Work], Work]:
        def register(work: Work) -> Work:
            async def handler(request: web.Request) -> web.StreamResponse:
                try:
                    body = await request.json() if method == "POST" and request.can_read_body else dict(request.query)
                    if not isinstance(body, dict):
                        raise ValueError("The body must be a JSON object.")
                    return web.json_response(await work(body))
                except ServiceError as error:
                    return web.json_response({"error": str(error)}, status=503 if error.away else 400)
                except SpoolError as error:
                    return web.json_response({"error": str(error)}, status=507)
                except KeyError as error:
                    return web.json_response({"error": f"The field {error} is missing."}, status=400)
                except (ValueError, TypeError) as error:
                    return web.json_response({"error": str(error)}, status=400)

            routes.route(method, f"/comfyloop/{path}")(handler)
            return work

        return register

    @route("GET", "state")
    async def state(_: Any) -> Any:
        config = pack.config
        live = pack.live.known(config.project)
        return {
            "url": config.url,
            "project": config.project,
            "author": config.author,
            "has_token": bool(config.token),
            "capturing": config.capturing,
            "excluded": config.excluded,
            "connected": not pack.live.state,
            "why": pack.live.state or pack.delivery.state,
            "live": live.number if live else None,
            "waiting": pack.spool.waiting,
            "problem": pack.spool.problem,
            "refused": len(pack.spool.refused()),
            "pauses": [p.shown for p in pack.pauses.values()],
        }

    @route("POST", "settings")
    async def settings(body: Any) -> Any:
        capture = body.pop("capturing", None)
        config = pack.config.changed(**body)
        if capture is not None:
            others = [name for name in config.capture if name != config.project]
            body["capture"] = [*others, config.project] if capture else others
        await asyncio.to_thread(lambda: pack.settings.change(**body))
        pack.loop.call_soon_threadsafe(pack.delivery.wake)
        return await state(None)

    @route("GET", "project")
    async def project(_: Any) -> Any:
        """What the sidebar tells of the service: projects, the live version, the loop, what waits for it."""
        service, name = pack.service(), pack.config.project
        projects = [p["name"] for p in (await service.get("/v1/projects"))["items"]]
        if name not in projects:
            raise ServiceError(f"There is no project {name!r}. There are: {', '.join(projects)}.", 404)
        live = await pack.live.refresh(name)
        version = await service.get(f"/v1/versions/{live.number}", project=name) if live.number else None
        loop = await service.get("/v1/loop", project=name)
        new = await service.get("/v1/feedback", project=name, after=loop.get("seen_seq", 0), limit=1000)
        return {
            "projects": projects,
            "live": live.number,
            "version": version,
            "loop": loop,
            "new": len(new["items"]),
        }

    @route("GET", "recent")
    async def recent(_: Any) -> Any:
        found = await pack.service().get("/v1/generations", project=pack.config.project, limit=10)
        return {
            "answers": found["items"],
            "grids": [{k: v for k, v in g.items() if k != "files"} for g in reversed(pack.grids)],
        }

    @route("POST", "review")
    async def review(body: Any) -> Any:
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
        return await _keep_and_go_on(items, body)

    @route("POST", "pick")
    async def pick(body: Any) -> Any:
        shown = [str(sha) for sha in body["shown"]]
        picked = [str(sha) for sha in body.get("picked") or ()]
        ratings = {str(sha): _rating(value) for sha, value in (body.get("ratings") or {}).items() if value}
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
        )
        if body.get("prompt_id"):
            pack.capture.picked(str(body["prompt_id"]), picked)
        return await _keep_and_go_on(items, body)

    async def _keep_and_go_on(items: list[Any], body: Any) -> Any:
        images = {}
        if items and "shown" in body:
            images = await asyncio.to_thread(pack.grid_images, [str(sha) for sha in body["shown"]])
        problem = ""
        try:
            await asyncio.to_thread(pack.keep, items, images)
        except SpoolError as error:  # the workflow goes on; the person is told
            problem = str(error)
        pause = pack.pauses.get(str(body.get("pause") or ""))
        if pause is not None:
            pause.answer = body
        if problem:
            raise SpoolError(problem)
        return {"kept": len(items), "continued": pause is not None, "waiting": pack.spool.waiting}

    @route("POST", "retry")
    async def retry(_: Any) -> Any:
        return {"queued": await asyncio.to_thread(pack.spool.retry_refused)}

    @route("GET", "refused")
    async def refused(_: Any) -> Any:
        return {"items": [r["why"] for r in pack.spool.refused()][-20:]}

    @route("POST", "rollback")
    async def rollback(_: Any) -> Any:
        answer = await pack.service().post("/v1/rollback", {"project": pack.config.project})
        await pack.live.refresh(pack.config.project)
        return answer


def _rating(value: Any) -> int | None:
    if value in (None, 0, ""):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 5:
        raise ValueError("A rating is a whole number from 1 to 5.")
    return value
