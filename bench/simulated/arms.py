"""The ways to learn that are compared: settings of a service, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from comfyloop.settings import Settings


@dataclass(frozen=True)
class Arm:
    """One way to learn.

    Attributes:
        environment: Settings of the service: `COMFYLOOP_*` variables without the prefix, in any case.
        learns: Feedback is sent and a turn started each round; otherwise people only ask.
        turns: Whether turns are started; without them only what works before training shows.
        early: Feedback may change answers before the turn: the unseen items are asked then, too.
        calls: Calls to the service after each turn: (method, path, body).
        by_peer: The peer's rule promotes, in place of the gate.
    """

    name: str
    about: str
    environment: Mapping[str, str] = field(default_factory=dict)
    learns: bool = True
    turns: bool = True
    early: bool = False
    calls: tuple[tuple[str, str, Any], ...] = ()
    by_peer: bool = False


ARMS = {
    arm.name: arm
    for arm in (
        Arm("nothing", "the base model as it is", learns=False, turns=False),
        Arm("today", "the settings' defaults"),
        Arm("training", "training alone, no examples in the prompt", {"EXAMPLES": "off"}),
        Arm("cold", "every turn begins at the base model", {"WARM_START": "false"}),
        Arm("examples", "nearest edits in the prompt, no turns", {"EXAMPLES": "on"}, turns=False, early=True),
        Arm(
            "words",
            "preferences in words, no turns",
            {"EXAMPLES": "off", "PREFERENCES_IN_PROMPT": "true"},
            turns=False,
            early=True,
        ),
        Arm("sdft", "on-policy self-distillation from edits", {"RECIPE": "sdft"}),
        Arm(
            "sdft-edits",
            "self-distillation on the edits themselves, nothing sampled",
            {"RECIPE": "sdft", "DISTILLATION_LMBDA": "0"},
        ),
        Arm("dpo", "edits preferred to what was answered", {"RECIPE": "dpo"}),
        Arm("kto", "learning from ratings", {"RECIPE": "kto"}),
        Arm("consolidate", "every turn a consolidation from the base", {"CONSOLIDATE_EVERY": "1"}),
        Arm("all", "all together", {"EXAMPLES": "on", "PREFERENCES_IN_PROMPT": "true"}, early=True),
        Arm("peer", "soup-cli's rule promotes", {"AUTO_PROMOTE": "false"}, by_peer=True),
    )
}


def fitting(arm: Arm) -> tuple[dict[str, str], list[str]]:
    """The arm's settings that this code knows, by their lower-case names, and a sentence for each that it does not."""
    fitting_settings: dict[str, str] = {}
    left_out: list[str] = []
    for variable, value in arm.environment.items():
        name = variable.lower().removeprefix("comfyloop_")
        if name not in Settings.model_fields:
            left_out.append(f"This code has no setting {name}, which {arm.name} sets to {value!r}.")
            continue
        try:
            Settings.model_validate({name: value})
        except ValidationError as error:
            why = error.errors()[0]["msg"]
            left_out.append(f"This code cannot set {name} to {value!r}, as {arm.name} does: {why}.")
            continue
        fitting_settings[name] = value
    return fitting_settings, left_out
