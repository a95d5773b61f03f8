"""What a model takes, and what that means on cards of several sizes. Figures of Qwen2.5-VL-7B's true shape."""

from __future__ import annotations

import pytest

from comfyloop.errors import InvalidInput, ModelError
from comfyloop.models.figures import Figures
from comfyloop.models.memory import (
    GIB,
    Machine,
    MemoryPlan,
    Step,
    Trained,
    Way,
    bytes_of,
    make,
    of_size,
    refuse_too_large,
    to_serve,
    to_train,
)

QWEN = Figures(
    linear=6_525_288_448, others=1_766_878_208, largest=67_895_296, layers=28, hidden=3584, cached=28_672,
    vocabulary=152_064, sees=True,
)  # fmt: skip
TRAINED = Trained(
    weights=20_185_088,
    fused=Step(59_835_120, 6_053_179),
    checkpointed=Step(4_685_832, 489_946),
    plain=Step(19_464_944, 8_878_935),
    image_tokens={1_003_520: 1260, 262_144: 324, 65_536: 81},
    tower=234_420_480,
)
HERE = Machine("the processor", "cpu", 24 * GIB)


def planned(gigabytes: float, **wanted: object) -> MemoryPlan:
    way = Way(**wanted)  # type: ignore[arg-type]
    return make(QWEN, of_size(HERE, int(gigabytes * GIB)), way, TRAINED, requests=8, kept=0)


def test_weights_of_a_7b_are_those_that_were_measured() -> None:
    assert QWEN.weights(2) / GIB == pytest.approx(15.45, abs=0.01)
    assert QWEN.weights(2, four_bits=True) / GIB == pytest.approx(6.43, abs=0.01)


def test_a_card_with_room_for_all_keeps_what_is_set() -> None:
    plan = planned(141)
    assert plan.changed == {} and plan.together == (("serving", "training"),) and not plan.complaint


def test_a_24_gb_card_takes_turns_where_images_are_large() -> None:
    plan = planned(24)
    assert plan.together == (("serving",), ("training",)) and "engine_quant_method" not in plan.changed
    assert plan.changed["quant_method"] == "bnb"


def test_a_24_gb_card_holds_both_in_four_bits() -> None:
    plan = planned(24, max_pixels=262_144)
    assert plan.changed["quant_method"] == plan.changed["engine_quant_method"] == "bnb"
    assert plan.together == (("serving", "training"),)
    assert sum(need.total for need in plan.needs.values()) <= plan.machine.room
    assert to_train(QWEN, plan.machine, Way(), TRAINED).total > plan.machine.room


def test_a_12_gb_card_takes_turns_with_settings_under_which_each_fits() -> None:
    plan = planned(12)
    assert plan.together == (("serving",), ("training",))
    assert plan.changed["quant_method"] == plan.changed["engine_quant_method"] == "bnb"
    assert all(need.total <= plan.machine.room for need in plan.needs.values())


def test_a_refusal_names_the_setting_under_which_it_fits() -> None:
    with pytest.raises(
        ModelError, match=r"not loaded.*engine_quant_method = bnb: in four bits it takes [789]\."
    ):
        refuse_too_large("Qwen", QWEN, of_size(HERE, 12 * GIB))
    refuse_too_large("Qwen", QWEN, of_size(HERE, 12 * GIB), four_bits=True)


def test_what_fits_in_no_way_is_said_with_a_mend() -> None:
    plan = planned(6)
    assert "takes" in plan.complaint and "5.7" in plan.complaint and "smaller base model" in plan.hint
    with pytest.raises(ModelError, match=r"not loaded.*smaller base model"):
        refuse_too_large("Qwen", QWEN, plan.machine)
    refuse_too_large("Qwen", QWEN, of_size(HERE, 24 * GIB))


def test_smaller_images_come_last() -> None:
    fits = planned(24)
    assert "max_pixels" not in fits.changed or fits.changed["gradient_checkpointing"] is True


def test_short_samples_cost_what_is_written_out_of_their_attention() -> None:
    step = Step(fixed=10, token=2, pair=1.0)
    assert step.at(3, 4) == 10 + 3 * (2 * 4 + 16)
    assert step.at(1, 2000) == 10 + 4000


def test_cache_grows_with_requests_alone() -> None:
    one, eight = (to_serve(QWEN, HERE, requests=count) for count in (1, 8))
    assert eight.cache == 8 * one.cache and eight.weights == one.weights


@pytest.mark.parametrize("told", ["24GB", "24 GiB", "24", "24.0g"])
def test_sizes_of_cards(told: str) -> None:
    assert bytes_of(told) == 24 * GIB


@pytest.mark.parametrize("told", ["", "much", "0", "-3GB", "nan", "1e99"])
def test_what_is_no_size(told: str) -> None:
    with pytest.raises(InvalidInput, match="--gpu 24GB"):
        bytes_of(told)
