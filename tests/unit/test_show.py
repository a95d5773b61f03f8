"""What is printed of a run."""

from __future__ import annotations

import pytest
from rich.console import Console, RenderableType
from typer.testing import CliRunner

from comfyloop.cli import app
from comfyloop.client import show
from comfyloop.errors import EngineUnavailable
from comfyloop.records import Loop


def shown(thing: RenderableType) -> str:
    console = Console(width=100, record=True)
    console.print(thing)
    return console.export_text()


def _printed(lines: list[dict[str, object]]) -> str:
    return shown(show.loss_curve(lines))


def test_the_sides_of_a_joint_run_have_curves_of_their_own() -> None:
    text = [{"side": "text", "step": n, "loss": 4.0 / n} for n in range(1, 9)]
    image = [{"side": "image", "step": n, "loss": 0.5 / n, "holdout_loss": 0.3} for n in range(1, 5)]
    printed = _printed([*text, *image])
    assert "step 8   loss 4.000 -> 0.500" in printed
    assert "step 4   loss 0.500 -> 0.125   held out 0.300 -> 0.300" in printed
    assert printed.index("text") < printed.index("step 8") < printed.index("image") < printed.index("step 4 ")


def test_a_run_of_one_side_has_one_curve_without_a_name() -> None:
    printed = _printed([{"step": n, "loss": 2.0} for n in range(1, 4)])
    assert printed.count("step 3") == 1
    assert "text" not in printed


def test_the_last_turns_verdict_is_said_and_where_to_read_more() -> None:
    told = Loop(project="acme", outcome="ask", version=3, reason="v3: ask a person.")
    text = shown(show.loop(told))
    assert "v3: ask a person." in text and "comfyloop gate show 3" in text
    assert "gate show" not in shown(show.loop(Loop(project="acme", outcome="promoted", version=3)))


@pytest.mark.parametrize("words", ["3", "judge 3", "show 3", "--json 3"])
def test_a_version_is_judged_or_its_report_is_shown(words: str) -> None:
    # nobody listens there: that the command is understood is what the error shows
    done = CliRunner().invoke(app, ["gate", *words.split(), "--url", "http://127.0.0.1:1"])
    assert isinstance(done.exception, EngineUnavailable), done.output
