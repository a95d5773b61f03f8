"""When a run has learnt nothing, and when that cannot be said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.errors import RunFailed
from comfyloop.train.recipes import sft
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.learnt import refuse_unlearnt
from comfyloop.train.specs.text import TrainSpec
from tests.unit.train.conftest import RunRecipe
from tests.unit.train.test_preferences import THINGS, pair_row

FLAT = [5.2, 5.3, 5.4, 5.3] * 6


def spec(warm: bool = False, **values: Any) -> TrainSpec:
    adapter = {"adapter": {"init_from": "parent"}} if warm else {}
    return TrainSpec.model_validate({"model": "m", "train": "t", **adapter, **values})


@pytest.mark.parametrize(
    ("losses", "steps_per_pass"),
    [(FLAT, 4), (FLAT, 100), ([2.0, 2.1, 2.2, 2.3, 2.5, 2.4, 2.6, 2.5], 4)],
    ids=["passes", "one pass", "rising"],
)
@pytest.mark.parametrize("recipe", ["sft", "dpo", "kto"])
def test_a_loss_that_did_not_fall_is_said(recipe: str, losses: list[float], steps_per_pass: float) -> None:
    with pytest.raises(RunFailed, match=r"did not fall: .* Nothing was learnt.* learning_rate \(0\.001\)"):
        refuse_unlearnt(spec(recipe=recipe), losses, steps_per_pass)


@pytest.mark.parametrize(
    ("losses", "steps_per_pass", "held_out", "warm"),
    [
        (FLAT[:7], 2, [], False),  # too short to say
        (FLAT[:19], 100, [], False),  # each sample once, and few of them
        (FLAT, 4, [3.0, 2.9], False),  # the hold-out says otherwise
        ([0.02, 0.03] * 8, 4, [], False),  # known from the start
        (FLAT, 4, [], True),  # goes on from a version: may know all that there is
        ([*FLAT[:12], *(x * 1.02 for x in FLAT[:12])], 4, [], True),
        ([0.693] * 4 + [0.692] * 8, 4, [], False),
    ],
)
def test_a_run_that_may_have_learnt_is_left_alone(
    losses: list[float], steps_per_pass: float, held_out: list[float], warm: bool
) -> None:
    refuse_unlearnt(spec(warm), losses, steps_per_pass, held_out)


def test_early_stopping_and_replay_have_their_say() -> None:
    """The best look is what is kept; and what holds to its base is to rise there."""
    refuse_unlearnt(spec(early_stopping_patience=2), FLAT, 4, [3.0, 2.9, 3.1])
    with pytest.raises(RunFailed, match="did not fall"):
        refuse_unlearnt(spec(), FLAT, 4, [3.0, 2.9, 3.1])
    refuse_unlearnt(spec(warm=True, replay_share=0.3), [0.2] * 8 + [0.5] * 8, 4)


def test_a_run_that_goes_on_from_a_version_must_not_rise() -> None:
    with pytest.raises(RunFailed, match="did not fall"):
        refuse_unlearnt(spec(warm=True), [1.0] * 8 + [1.5] * 8, 4)


@given(
    st.lists(st.floats(0.2, 8), min_size=8, max_size=40),
    st.integers(1, 50),
    st.booleans(),
)
def test_what_falls_by_half_at_every_sample_is_never_refused(
    losses: list[float], steps_per_pass: int, warm: bool
) -> None:
    """The same samples each pass, each at half its loss of the pass before: whatever their order of difficulty."""
    passes = [x / 2 ** (i // steps_per_pass) for i, x in enumerate(_repeated(losses, steps_per_pass))]
    if len(passes) >= 2 * steps_per_pass:
        refuse_unlearnt(spec(warm), passes, steps_per_pass)


def _repeated(losses: list[float], steps_per_pass: int) -> list[float]:
    first = losses[:steps_per_pass]
    return [first[i % len(first)] for i in range(len(losses))]


def test_a_run_that_learnt_nothing_fails_with_that_sentence_and_leaves_no_result(
    tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    rows = [pair_row(thing) for thing in THINGS]
    values = {"per_device_train_batch_size": 5, "max_steps": 12, "epochs": 12}
    with pytest.raises(RunFailed, match=r"The training loss did not fall: .* no result is kept"):
        run_recipe(sft, tiny_llm, rows, learning_rate=1e-12, **values)
    assert not RunDirectory(tmp_path / "run").adapter.exists()
    lines = run_recipe(sft, tiny_llm, rows, name="well", learning_rate=0.01, **values)
    assert len(lines) == 12 and RunDirectory(tmp_path / "well").adapter.is_dir()
