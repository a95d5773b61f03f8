"""The order of training: what is new in every epoch, the rest in its share."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from comfyloop.train.run.plan import Plan
from comfyloop.train.specs.text import TrainSpec


def plan(
    new: int, rehearsal: int, replay: int, *, share: float = 0.4, epochs: float = 6.0, batch: int = 4
) -> Plan:
    spec = TrainSpec(
        model="m", train="t", epochs=epochs, per_device_train_batch_size=batch, replay_share=share
    )
    parts = ["new"] * new + ["rehearsal"] * rehearsal + ["replay"] * replay
    return Plan.of(spec, len(parts), parts)  # type: ignore[arg-type]


def passed(made: Plan) -> Counter[int]:
    return Counter(i for step in range(made.total_steps) for b in made.micro_batches(step) for i in b)


@given(new=st.integers(1, 30), rehearsal=st.integers(0, 60), replay=st.integers(0, 80))
def test_new_samples_come_in_every_epoch_and_the_others_in_their_share(
    new: int, rehearsal: int, replay: int
) -> None:
    made = plan(new, rehearsal, replay)
    times = passed(made)
    assert all(times[i] == 6 for i in range(new))
    old = [times[i] for i in range(new, new + rehearsal)]
    assert not old or max(old) - min(old) <= 1
    assert sum(old) == 6 * max(-(-rehearsal // 6), min(rehearsal, -(-new // 3))), (
        "in practice, in every epoch"
    )
    general = [times[i] for i in range(new + rehearsal, new + rehearsal + replay)]
    assert not general or max(general) - min(general) <= 1
    if replay >= 80:
        assert abs(sum(general) / sum(times.values()) - 0.4) < 0.05
    assert made.used() == sorted(times)


def test_a_turn_takes_hardly_more_steps_however_much_was_learned_before() -> None:
    few, many = plan(20, 24, 64), plan(20, 40, 64)  # 24 old samples, or the most that is rehearsed
    assert many.total_steps <= 1.5 * few.total_steps


def test_files_from_elsewhere_pass_every_row_in_every_epoch() -> None:
    assert set(passed(plan(10, 5, 3, share=0.0)).values()) == {6}
    assert set(passed(plan(0, 0, 8)).values()) == {6}


@pytest.mark.parametrize("seed", [-(2**63), -1, 1125899906842624, 2**64 - 1])
def test_seeds_are_as_long_as_comfyuis(seed: int) -> None:
    spec = TrainSpec(model="m", train="t", seed=seed)
    order = Plan.of(spec, 40).micro_batches(3)
    assert (
        order
        == Plan.of(spec, 40).micro_batches(3)
        != Plan.of(TrainSpec(model="m", train="t"), 40).micro_batches(3)
    )
    with pytest.raises(ValidationError, match="seed"):
        TrainSpec(model="m", train="t", seed=2**64)
