"""Properties that hold whatever is done in whatever order, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfyloop import capture
from comfyloop.errors import Conflict
from comfyloop.records import BASE, AnswerEdited, Feedback, Version, VersionState
from comfyloop.settings import Settings
from comfyloop.store import Store, feedback, projects, splits, versions
from tests import counting

examples = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FreshProject = Callable[[], str]

batches = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=6)


def edit(project: str, number: int) -> Feedback:
    return AnswerEdited(
        id=f"{project}.{number}",
        project=project,
        generation=f"gen_{project}",
        edited=f"Rose number {number}.",
        author="ann" if number % 2 else "bob",
    )


@examples
@given(sent=batches)
def test_feedback_is_stored_exactly_once_however_often_it_is_sent(
    store: Store, fresh_project: FreshProject, sent: list[list[int]]
) -> None:
    project = fresh_project()
    expected: list[str] = []
    for batch in sent:
        items = [edit(project, number) for number in batch]
        receipt = capture.feedback.submit(store, items, Settings())
        new = [id for id in dict.fromkeys(item.id for item in items) if id not in expected]
        assert list(receipt.stored) == new
        assert len(receipt.stored) + len(receipt.duplicates) == len(batch)
        expected += new
    with store.read() as conn:
        rows = feedback.list_by(conn, project)
    assert [item.id for _, item in rows] == expected
    numbers = [seq for seq, _ in rows]
    assert numbers == sorted(set(numbers))


@examples
@given(sent=batches)
def test_feedback_is_stored_exactly_once_when_clients_race(
    store: Store, fresh_project: FreshProject, sent: list[list[int]]
) -> None:
    project = fresh_project()

    def submit(batch: list[int]) -> list[str]:
        items = [edit(project, number) for number in batch]
        return list(capture.feedback.submit(store, items, Settings()).stored)

    with ThreadPoolExecutor(4) as pool:
        stored = [id for ids in pool.map(submit, sent + sent) for id in ids]
    wanted = {edit(project, number).id for batch in sent for number in batch}
    assert sorted(stored) == sorted(wanted)
    with store.read() as conn:
        assert sorted(item.id for _, item in feedback.list_by(conn, project)) == sorted(wanted)


groups = st.lists(st.text(max_size=5), max_size=8)


@examples
@given(rounds=st.lists(st.tuples(groups, st.integers(2, 5), st.booleans()), max_size=5))
def test_a_group_never_changes_its_fold(
    store: Store, fresh_project: FreshProject, rounds: list[tuple[list[str], int, bool]]
) -> None:
    project = fresh_project()
    known: dict[str, str] = {}
    for names, every, delete in rounds:
        with store.begin() as conn:
            feedback.add(conn, [edit(project, number) for number in range(len(names))])
            given_folds = splits.assign(conn, project, dict.fromkeys(names, "correction"), every)
            if delete:
                feedback.delete_author(conn, project, "ann")
        assert set(given_folds) == set(names)
        for name in dict.fromkeys(names):
            place = len(known)
            expected = "holdout" if place % every == every - 1 else "train"
            assert known.setdefault(name, expected) == given_folds[name]
    with store.read() as conn:
        assert sum(counting.groups(conn, project).values()) == len(known)


moves = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.none()),
        st.tuples(st.just("promote"), st.integers(0, 4)),
        st.tuples(st.just("rollback"), st.none() | st.integers(0, 4)),
        st.tuples(st.just("reject"), st.integers(1, 4)),
        st.tuples(st.just("fail"), st.integers(0, 4)),
    ),
    max_size=20,
)


@examples
@given(moves=moves)
def test_exactly_one_version_or_the_base_is_live(
    store: Store, fresh_project: FreshProject, moves: list[tuple[str, int | None]]
) -> None:
    project = fresh_project()
    count, trail, rejected = 0, [BASE], set[int]()
    for move, number in moves:
        live = trail[-1]
        if number is not None and number > count:
            continue
        if move == "add":
            with store.begin() as conn:
                count = versions.next_number(conn, project)
                versions.add(conn, Version(project=project, number=count, text_adapter="x"))
        elif move == "promote" and number is not None:
            try:
                with store.begin() as conn:
                    assert versions.promote(conn, project, number).live == number
                assert number not in rejected
                if number != live:
                    trail.append(number)
            except Conflict:
                assert number in rejected
        elif move == "rollback":
            try:
                with store.begin() as conn:
                    after = versions.rollback(conn, project, number).live
                if number is None:
                    trail.pop()
                elif number != live:
                    trail = [*trail[: _last(trail, number)], number]
                assert after == trail[-1]
            except Conflict:
                assert len(trail) == 1 if number is None else number not in trail
        elif move == "reject" and number is not None:
            with store.read() as conn:
                state = versions.get(conn, project, number).state
            try:
                with store.begin() as conn:
                    versions.set_state(conn, project, number, VersionState.REJECTED)
                rejected.add(number)
            except Conflict:
                assert state in (VersionState.LIVE, VersionState.RETIRED)
        elif move == "fail" and number is not None:
            try:
                with store.begin() as conn:
                    versions.promote(conn, project, number, force=True)
                    _ = 1 / 0
            except ZeroDivisionError:
                pass
        with store.read() as conn:
            states = {v.number: v.state for v in versions.list_by(conn, project)}
            assert projects.get(conn, project).live == trail[-1]
        assert [n for n, state in states.items() if state == VersionState.LIVE] == [
            n for n in trail[-1:] if n != BASE
        ]


def _last(trail: list[int], number: int) -> int:
    """Where `number` comes last in the trail, else its end: a rollback to elsewhere is a step on."""
    return len(trail) - 1 - trail[::-1].index(number) if number in trail else len(trail)
