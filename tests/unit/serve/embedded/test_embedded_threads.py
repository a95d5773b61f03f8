"""A decode step takes all threads, or one where that is faster."""

from collections.abc import Callable, Iterator

import pytest
import torch

from comfyloop.serve.embedded.threads import PROBE_EVERY, PROBE_STEPS, StepThreads

ROUND = PROBE_EVERY + PROBE_STEPS


@pytest.fixture(autouse=True)
def same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def take_steps(
    threads: StepThreads,
    steps: int,
    seconds: Callable[[int], float],
    rows: Callable[[int], int] = lambda _: 4,
) -> list[int]:
    """Steps that take `seconds` of how many threads they have; returns how many each had."""
    had = []
    for step in range(steps):
        had.append(threads.next)
        threads.took(rows(step), seconds(had[-1]))
    return had


def test_one_thread_is_taken_while_it_is_faster_and_all_again_afterwards() -> None:
    threads = StepThreads(2)
    busy, idle = (lambda n: 0.02 * n), (lambda n: 0.02 / n)
    take_steps(threads, ROUND, busy)
    assert threads.count == 1
    take_steps(threads, ROUND, busy)
    assert threads.count == 1
    take_steps(threads, ROUND, idle)
    assert threads.count == 2


def test_few_steps_are_spent_on_trying() -> None:
    had = take_steps(StepThreads(2), 10 * ROUND, lambda n: 0.02 / n)
    assert had.count(1) == 10 * PROBE_STEPS


def test_steps_of_other_sizes_decide_nothing() -> None:
    threads = StepThreads(2)
    take_steps(threads, 20 * ROUND, lambda n: 0.02 * n, rows=lambda step: 1 + step)
    assert threads.count == 2


def test_all_threads_are_set_between_steps_and_probes_take_the_other_count() -> None:
    torch.set_num_threads(2)
    threads, seen = StepThreads(2), []
    for _ in range(ROUND):
        with threads.step(1):
            seen.append(torch.get_num_threads())
        assert torch.get_num_threads() == 2
    assert seen == [2] * PROBE_EVERY + [1] * PROBE_STEPS


def test_an_engine_of_one_thread_tries_nothing() -> None:
    torch.set_num_threads(1)
    threads = StepThreads(1)
    for _ in range(2 * ROUND):
        with threads.step(1):
            assert torch.get_num_threads() == 1


def test_the_bits_do_not_depend_on_the_threads() -> None:
    from comfyloop.serve.embedded.packed import Packer

    product = Packer(1 << 30)(torch.randn(1536, 576).bfloat16(), None)
    for rows in (1, 3, 8):
        x = torch.randn(rows, 576).bfloat16()
        made = []
        for count in (1, 2):
            torch.set_num_threads(count)
            made.append(product(x))
        assert torch.equal(*made)
