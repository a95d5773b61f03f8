"""/settings: how a project learns, what its edits say in words, the service's settings, what fits into memory, who
changed what, and whether all is well."""

from __future__ import annotations

import json
import re
import threading
from typing import Any, NamedTuple

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from pydantic_core import PydanticUndefined

from comfyloop import doctor
from comfyloop.errors import ComfyLoopError
from comfyloop.memory.plan import plan_of, sentences
from comfyloop.models.memory import PARTS, MemoryPlan
from comfyloop.serve.api.recalling import listed
from comfyloop.serve.engines.protocol import sleeper_of
from comfyloop.settings import FILE, GROUPS, Settings, in_table
from comfyloop.web.frame import Asked

router = APIRouter()

_HIDDEN = {"token"}
_CHANGES = 30
"""Of the audit log, that are shown."""
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


class SettingRow(NamedTuple):
    """A setting as it is now, as it would be by itself, and why one would change it."""

    name: str
    line: str  # what stands in the settings file
    value: str
    default: str
    why: str

    @property
    def changed(self) -> bool:
        return self.value != self.default


@router.get("/settings")
def show_settings(desk: Asked) -> HTMLResponse:
    settings = desk.services.settings
    return desk.show(
        "settings.html",
        "settings",
        engine=desk.engine(),
        preferences=listed(desk.services, desk.project.name),
        groups={table: shown(settings, table) for table in GROUPS},
        file=settings.home / FILE,
        models=sorted(desk.services.router.engines),
        changes=desk.services.audit.newest(_CHANGES),
    )


@router.get("/settings/health")
def show_health(desk: Asked) -> HTMLResponse:
    """Asked for after the page is there: it waits for the engines."""
    router = desk.services.router
    sleepers = {name: sleeper_of(engine) for name, engine in router.engines.items()}
    return desk.show(
        "health.html",
        "settings",
        problems=router.problems(),
        engines={name: engine.state.value for name, engine in router.engines.items()},
        sleepers={name: sleeper for name, sleeper in sleepers.items() if sleeper is not None},
    )


@router.get("/settings/doctor")
def show_doctor(desk: Asked) -> HTMLResponse:
    """Asked for after the page is there: it looks at the machine."""
    checks = doctor.examine(desk.services.settings, within=True)
    return desk.show("doctor.html", "settings", checks=checks)


@router.get("/settings/plan")
def show_plan(desk: Asked) -> HTMLResponse:
    """Asked for when a person wants it: a process looks at the model, which takes a minute."""
    problem, plan = "", None
    try:
        with desk.services.heavily("a plan of the memory"):
            plan = _PLANS.of(desk.services.settings)
    except ComfyLoopError as error:
        problem = str(error)
    return desk.show(
        "plan.html", "settings", plan=plan, parts=PARTS, told=sentences(plan) if plan else [], problem=problem
    )


class _Plans:
    """The plan of these settings, kept: the machine does not change while the service runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: tuple[str, MemoryPlan] | None = None

    def of(self, settings: Settings) -> MemoryPlan:
        asked = settings.model_dump_json()
        with self._lock:
            if self._made is None or self._made[0] != asked:
                self._made = (asked, plan_of(settings))
            return self._made[1]


_PLANS = _Plans()


def shown(settings: Settings, table: str) -> list[SettingRow]:
    found = []
    for name, field in GROUPS[table].model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        found.append(
            SettingRow(
                name,
                f"[{table}] {in_table(table, name)} = …",
                _said(name, getattr(settings, name)),
                _said(name, "" if default is PydanticUndefined else default),
                (field.description or "").replace("`", ""),
            )
        )
    return found


def _said(name: str, value: Any) -> str:
    """A value as it stands in a settings file; what lets somebody in is not shown."""
    if name in _HIDDEN and value:
        return "•••"
    if value is None:
        return ""
    if isinstance(value, bool | int | float | dict | list | tuple):
        return json.dumps(value, default=str, ensure_ascii=False)
    return _CREDENTIALS.sub("•••", "" if value is None else str(value))
