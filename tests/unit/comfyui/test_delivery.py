"""Delivery against a real HTTP server that behaves as the service: all of a batch or none, each id once."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
from aiohttp import web

from comfyui.delivery import Delivery
from comfyui.service import VERSION, Service, ServiceError
from comfyui.spool import Spool


class SmallService:
    """The real contract of feedback and images. `lose_answers` stores, then drops the connection."""

    def __init__(self) -> None:
        self.stored: dict[str, dict] = {}
        self.requests = 0
        self.images: set[str] = set()
        self.lose_answers = 0
        self.breaks = False
        self.token = ""
        self.url = ""
        self.version = VERSION

    async def __aenter__(self) -> SmallService:
        app = web.Application()
        app.router.add_get("/healthz", self.health)
        app.router.add_post("/v1/feedback", self.feedback)
        app.router.add_post("/v1/images", self.image)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runner.cleanup()

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "version": self.version})

    async def image(self, request: web.Request) -> web.Response:
        sha = hashlib.sha256(await request.read()).hexdigest()
        self.images.add(sha)
        return web.json_response({"sha256": sha}, status=201)

    async def feedback(self, request: web.Request) -> web.Response:
        self.requests += 1
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"error": {"message": "This service asks for a token."}}, status=401)
        items = (await request.json())["items"]
        for item in items:
            if item["project"] != "acme":
                error = {
                    "message": f"There is no project {item['project']!r}.",
                    "hint": "There are: acme.",
                    "code": "not_found",
                }
                return web.json_response({"error": error}, status=404)
        if self.breaks or any(item["id"].startswith("breaks") for item in items):
            return web.json_response({"error": {"message": "Something unexpected."}}, status=500)
        for item in items:
            assert self.stored.setdefault(item["id"], item) == item
        if self.lose_answers:
            self.lose_answers -= 1
            request.transport.close()
        return web.json_response({"stored": [], "duplicates": []}, status=201)


def items(*names: str, project: str = "acme") -> list[dict]:
    return [{"id": name, "kind": "test", "project": project} for name in names]


async def drain(spool: Spool, url: str, token: str = "") -> None:
    await Delivery(lambda: spool, lambda: Service(url, token, timeout=5)).drain()


def test_everything_arrives_once_and_the_images_before_it(tmp_path: Path) -> None:
    async def go() -> None:
        sha = hashlib.sha256(b"picture").hexdigest()
        spool = Spool(tmp_path)
        spool.append([{**items("a")[0], "image": sha}], {sha: b"picture"})
        spool.append(items(*(str(n) for n in range(250))))
        async with SmallService() as service:
            await drain(spool, service.url)
            assert len(service.stored) == 251 and service.images == {sha}
            assert service.requests == 3
        assert spool.waiting == 0

    asyncio.run(go())


def test_a_lost_answer_stores_nothing_twice_and_loses_nothing(tmp_path: Path) -> None:
    async def go() -> None:
        spool = Spool(tmp_path)
        spool.append(items("a", "b"))
        async with SmallService() as service:
            service.lose_answers = 1
            with pytest.raises(ServiceError, match="not running"):
                await drain(spool, service.url)
            assert spool.waiting == 2
            await drain(spool, service.url)
            assert list(service.stored) == ["a", "b"] and spool.waiting == 0

    asyncio.run(go())


def test_one_bad_item_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def go() -> None:
        spool = Spool(tmp_path)
        spool.append([*items("a"), *items("bad", project="nowhere"), *items("b")])
        async with SmallService() as service:
            await drain(spool, service.url)
            assert list(service.stored) == ["a", "b"]
        (refused,) = spool.refused()
        assert refused["why"] == "There is no project 'nowhere'. There are: acme."
        assert refused["item"]["id"] == "bad"

    asyncio.run(go())


def test_with_a_wrong_token_everything_waits(tmp_path: Path) -> None:
    async def go() -> None:
        spool = Spool(tmp_path)
        spool.append(items("a"))
        async with SmallService() as service:
            service.token = "right"
            with pytest.raises(ServiceError, match="refused the token"):
                await drain(spool, service.url, "wrong")
            assert spool.waiting == 1
            await drain(spool, service.url, "right")
            assert spool.waiting == 0

    asyncio.run(go())


def test_for_a_service_of_another_version_everything_waits(tmp_path: Path) -> None:
    async def go() -> None:
        spool = Spool(tmp_path)
        spool.append(items("a"))
        async with SmallService() as service:
            for theirs, told in (("9.9.1", "is version 9.9.1"), ("", "is version unknown")):
                service.version = theirs
                with pytest.raises(
                    ServiceError, match=f"{told} and the node pack in ComfyUI is {VERSION}"
                ) as error:
                    await drain(spool, service.url)
                assert error.value.away and spool.waiting == 1 and not service.stored
            service.version = VERSION.rsplit(".", 1)[0] + ".99"  # a bug fix fits
            await drain(spool, service.url)
            assert spool.waiting == 0

    asyncio.run(go())


def test_what_is_no_service_says_so_and_everything_waits(tmp_path: Path) -> None:
    async def go() -> None:
        spool = Spool(tmp_path)
        spool.append(items("a"))
        app = web.Application()

        async def page(_: web.Request) -> web.Response:
            return web.Response(text="<html>hello")

        app.router.add_get("/healthz", page)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        with pytest.raises(ServiceError, match="is not a ComfyLoop service"):
            await drain(spool, f"http://127.0.0.1:{runner.addresses[0][1]}")
        assert spool.waiting == 1
        await runner.cleanup()

    asyncio.run(go())


def test_a_delivery_begun_again_counts_nothing_twice(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(items("a", "b", "c"))
    entries = spool.pending(2)
    spool.delivered(entries)
    spool.delivered(entries)
    assert spool.waiting == 1 and [e.item["id"] for e in spool.pending()] == ["c"]


def test_run_goes_on_when_the_service_comes_back(tmp_path: Path) -> None:
    async def go() -> None:
        spool = Spool(tmp_path)
        spool.append(items("a"))
        url = "http://127.0.0.1:9"
        delivery = Delivery(lambda: spool, lambda: Service(url, timeout=2))
        task = asyncio.create_task(delivery.run())
        while not delivery.state:
            await asyncio.sleep(0.01)
        assert "Start it with `comfyloop up`" in delivery.state
        async with SmallService() as service:
            url = service.url
            async with asyncio.timeout(10):
                while spool.waiting:
                    await asyncio.sleep(0.02)
        task.cancel()

    asyncio.run(go())


def test_an_item_on_which_the_service_breaks_is_put_aside_after_some_tries(tmp_path: Path) -> None:
    async def go() -> None:
        spool = Spool(tmp_path)
        spool.append(items("a", "breaks", "b"))
        async with SmallService() as service:
            delivery = Delivery(lambda: spool, lambda: Service(service.url, timeout=5))
            for _ in range(2):
                with pytest.raises(ServiceError, match="Something unexpected"):
                    await delivery.drain()
                assert spool.waiting == 2 and not spool.refused()
            await delivery.drain()
            assert list(service.stored) == ["a", "b"] and spool.waiting == 0
        (refused,) = spool.refused()
        assert refused["item"]["id"] == "breaks" and "Something unexpected" in refused["why"]

    asyncio.run(go())


def test_a_service_that_breaks_on_everything_does_not_empty_the_spool(tmp_path: Path) -> None:
    async def go() -> None:
        spool = Spool(tmp_path)
        spool.append(items(*"abcdef"))
        async with SmallService() as service:
            service.breaks = True
            delivery = Delivery(lambda: spool, lambda: Service(service.url, timeout=5))
            for _ in range(20):
                with pytest.raises(ServiceError):
                    await delivery.drain()
            assert spool.waiting >= 3
            service.breaks = False
            await delivery.drain()
            assert spool.waiting == 0 and spool.retry_refused() + len(service.stored) == 6

    asyncio.run(go())
