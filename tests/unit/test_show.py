"""What is printed of a run."""

from __future__ import annotations

from rich.console import Console

from comfyloop import show


def _printed(lines: list[dict[str, object]]) -> str:
    console = Console(width=100, record=True)
    console.print(show.loss_curve(lines))
    return console.export_text()


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
