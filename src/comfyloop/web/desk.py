"""All pages as one thing to put into the application."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from comfyloop.errors import InvalidInput
from comfyloop.serve.api.app import Front
from comfyloop.web import assets, blind, data, faults, home, queue, runs, said, settings, signing, versions

PAGES = (home, queue, data, runs, blind, versions, settings)


def install(app: FastAPI) -> None:
    """Add the pages, what they look like, and errors as pages."""
    for part in (assets, signing, said, *PAGES):
        app.include_router(part.router, include_in_schema=False)
    faults.install(app)


def of_folder(folder: Path) -> Front:
    """Somebody's own pages in place of ours, over the same API; signing in stays.

    Raises:
        InvalidInput: There is no page to begin with.
    """
    if not (folder / "index.html").is_file():
        raise InvalidInput(
            f"There is no index.html in {folder}.", "Name the folder that a front end was built into."
        )

    def install_folder(app: FastAPI) -> None:
        for part in (assets, signing):
            app.include_router(part.router, include_in_schema=False)
        faults.install(app)
        app.mount("/", StaticFiles(directory=folder, html=True), name="frontend")

    return install_folder
