"""What each module of the store does and refuses, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest

from comfyloop.errors import Conflict, NotFound, StorageError
from comfyloop.records import (
    AnswerAccepted,
    AnswerEdited,
    AnswerRated,
    GateReport,
    Generation,
    GraphEdited,
    Loop,
    LoopState,
    Message,
    Project,
    Run,
    RunState,
    Sampling,
    Snapshot,
    Verdict,
    Version,
    VersionState,
)
from comfyloop.store import (
    Store,
    feedback,
    generations,
    leases,
    lessons,
    loops,
    projects,
    runs,
    snapshots,
    splits,
    versions,
)
from tests import counting

AWKWARD = "naïve 语言 🦜 \x00 \u2028 'quoted' \"twice\" \\ %s :x"


def test_projects_are_kept_as_they_were_given(store: Store) -> None:
    made = Project(
        name="b", base_model="m", auto=False, created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    )
    with store.begin() as conn:
        projects.add(conn, made)
    with store.read() as conn:
        assert projects.get(conn, "b") == made
        assert [p.name for p in projects.list_all(conn)] == ["acme", "b"]
        assert projects.find(conn, "c") is None
        with pytest.raises(NotFound, match=r"no project 'c'. There are: acme, b"):
            projects.get(conn, "c")


def test_a_project_is_added_once(store: Store) -> None:
    other = Project(name="acme", base_model="other")
    with pytest.raises(Conflict, match="exists already"), store.begin() as conn:
        projects.add(conn, other)
    with store.begin() as conn:
        assert projects.ensure(conn, other).base_model == "starter"
        assert projects.ensure(conn, Project(name="b", base_model="m")).name == "b"
    with pytest.raises(Conflict, match="cannot have version 3 live"), store.begin() as conn:
        projects.add(conn, Project(name="c", base_model="m", live=3))


def test_a_project_is_updated_field_by_field(store: Store) -> None:
    with store.begin() as conn:
        assert projects.update(conn, "acme", auto=False).auto is False
        changed = projects.update(conn, "acme", system_prompt=AWKWARD, base_model="new")
    assert changed.system_prompt == AWKWARD.replace("\x00", "\ufffd")
    assert (changed.base_model, changed.auto) == ("new", False)
    with store.begin() as conn:
        versions.add(conn, Version(project="acme", number=1, text_adapter="x"))
    with pytest.raises(Conflict, match="1 versions trained on 'new'"), store.begin() as conn:
        projects.update(conn, "acme", base_model="other")


def test_generations_come_back_equal(store: Store) -> None:
    sent = Generation(
        id="gen_2",
        project="acme",
        version=3,
        model="acme@3",
        messages=(Message.of("system", AWKWARD), Message.of("user", AWKWARD, ["a" * 64])),
        answer=AWKWARD,
        sampling=Sampling(temperature=0.7, top_p=0.1, stop=("\x00",), seed=2**63),
        created_at=datetime(2026, 5, 1, 12, 0, 0, 1, timezone(timedelta(hours=8))),
    )
    with store.begin() as conn:
        generations.add(conn, sent)
        generations.add(conn, sent)
    with store.read() as conn:
        assert generations.get(conn, "gen_2") == sent
        assert counting.generations(conn, "acme") == 2
        assert set(generations.get_many(conn, ["gen_1", "gen_2", "gen_3"])) == {"gen_1", "gen_2"}
        with pytest.raises(NotFound, match="gen_3"):
            generations.get(conn, "gen_3")
    with pytest.raises(Conflict, match="other content"), store.begin() as conn:
        generations.add(conn, sent.model_copy(update={"answer": "another"}))
    with pytest.raises(NotFound, match="no project 'nope'"), store.begin() as conn:
        generations.add(conn, sent.model_copy(update={"project": "nope", "id": "gen_4"}))


def test_generations_are_paged_newest_first(store: Store, generation: Callable[..., Generation]) -> None:
    with store.begin() as conn:
        for n in range(2, 8):
            made = generation("acme", f"gen_{n}").model_copy(update={"version": n % 2})
            generations.add(conn, made)
    with store.read() as conn:
        first = generations.list_by(conn, "acme", limit=4)
        second = generations.list_by(conn, "acme", limit=4, before_seq=first[-1][0])
        odd = generations.list_by(conn, "acme", version=1)
    assert [g.id for _, g in first + second] == [f"gen_{n}" for n in range(7, 0, -1)]
    assert [g.id for _, g in odd] == ["gen_7", "gen_5", "gen_3"]


def test_feedback_comes_back_equal_and_in_order(store: Store) -> None:
    graph = {"z": 1, "a": {"inputs": {"seed": 2**64, "text": AWKWARD, "cfg": 0.1, "none": None}}}
    items = [
        AnswerEdited(project="acme", generation="gen_1", edited=AWKWARD, author="ann", comment="\x00"),
        AnswerRated(project="acme", generation="gen_1", rating=5),
        GraphEdited(project="acme", before={}, after=graph),
    ]
    with store.begin() as conn:
        stored, duplicates = feedback.add(conn, items)
    assert (stored, duplicates) == ([item.id for item in items], [])
    with store.read() as conn:
        rows = feedback.list_by(conn, "acme")
        assert [item for _, item in rows] == items
        assert feedback.get(conn, items[0].id) == items[0]
        assert list(rows[2][1].after) == ["z", "a"]  # type: ignore[union-attr]
        assert [i.id for _, i in feedback.list_by(conn, "acme", kind="answer_rated")] == [items[1].id]
        assert [i.id for _, i in feedback.list_by(conn, "acme", author="ann")] == [items[0].id]
        assert [i.id for _, i in feedback.list_by(conn, "acme", rows[0][0], limit=1)] == [items[1].id]
        assert feedback.last_seq(conn, "acme") == rows[-1][0]
        assert feedback.count_after(conn, "acme", rows[0][0]) == 2
        assert feedback.oldest_after(conn, "acme", rows[-1][0]) is None
        oldest = feedback.oldest_after(conn, "acme", 0)
        assert oldest is not None and abs((datetime.now(UTC) - oldest).total_seconds()) < 60
        page = feedback.newest(conn, "acme", limit=2)
        rest = feedback.newest(conn, "acme", before_seq=page[-1][0])
        assert [i.id for _, i in page + rest] == [i.id for i in reversed(items)]
        with pytest.raises(NotFound, match="no feedback 'fb_no'"):
            feedback.get(conn, "fb_no")


def test_a_second_try_with_another_time_is_a_duplicate(store: Store) -> None:
    first = AnswerAccepted(id="fb_1", project="acme", generation="gen_1")
    again = AnswerAccepted(
        id="fb_1", project="acme", generation="gen_1", created_at=first.created_at + timedelta(seconds=9)
    )
    with store.begin() as conn:
        assert feedback.add(conn, [first, again]) == (["fb_1"], ["fb_1"])
    with store.begin() as conn:
        assert feedback.add(conn, [again]) == ([], ["fb_1"])
    with store.read() as conn:
        assert feedback.get(conn, "fb_1") == first


def test_other_content_under_a_known_id_stores_nothing_of_the_batch(store: Store) -> None:
    with store.begin() as conn:
        feedback.add(conn, [AnswerEdited(id="fb_1", project="acme", generation="gen_1", edited="one")])
    batch = [
        AnswerAccepted(id="fb_2", project="acme", generation="gen_1"),
        AnswerEdited(id="fb_1", project="acme", generation="gen_1", edited="two"),
    ]
    with pytest.raises(Conflict, match=r"fb_1.*other content"), store.begin() as conn:
        feedback.add(conn, batch)
    with store.read() as conn:
        assert [item.id for _, item in feedback.list_by(conn, "acme")] == ["fb_1"]


def test_an_author_can_have_everything_deleted_and_it_stays_so(store: Store) -> None:
    mine = [AnswerAccepted(project="acme", generation="gen_1", author="ann") for _ in range(3)]
    other = AnswerAccepted(project="acme", generation="gen_1", author="bob")
    with store.begin() as conn:
        feedback.add(conn, [*mine, other])
        last = feedback.last_seq(conn, "acme")
        assert feedback.delete_author(conn, "acme", "nobody") == 0
        assert feedback.delete_author(conn, None, "bob") == 1
        assert feedback.delete_author(conn, "acme", "ann") == 3
        assert feedback.count_after(conn, "acme", 0) == 0
        # A delivery that was under way comes again: it does not bring anything back.
        assert feedback.add(conn, mine) == ([], [item.id for item in mine])
        # A number is never used twice, or a loop that has seen `last` would overlook what is new.
        feedback.add(conn, [AnswerAccepted(project="acme", generation="gen_1", author="ann")])
        assert feedback.last_seq(conn, "acme") > last
        assert feedback.count_after(conn, "acme", last) == 1


def test_feedback_on_nothing_is_refused_by_the_database_itself(store: Store) -> None:
    with pytest.raises(Conflict, match="refers to nothing"), store.begin() as conn:
        feedback.add(conn, [AnswerAccepted(project="acme", generation="gen_none")])


def test_every_nth_new_group_is_held_out(store: Store) -> None:
    with store.begin() as conn:
        first = splits.assign(conn, "acme", dict.fromkeys("abcb", "correction"), every=3)
        second = splits.assign(conn, "acme", dict.fromkeys("dcef", "correction"), every=3)
        changed = splits.assign(conn, "acme", dict.fromkeys("abcdef", "correction"), every=2)
    assert first == {"a": "train", "b": "train", "c": "holdout"}
    assert second == {"d": "train", "c": "holdout", "e": "train", "f": "holdout"}
    assert changed == first | second
    with store.read() as conn:
        assert counting.groups(conn, "acme") == {"train": 4, "holdout": 2}


def test_after_what_was_judged_every_second_group_is_held_out_again(store: Store) -> None:
    stratum = dict.fromkeys("abcdefghijkl", "correction")
    first_ten = {name: kind for name, kind in stratum.items() if name < "k"}
    with store.begin() as conn:
        before = splits.assign(conn, "acme", first_ten, every=4, first=2)
        after = splits.assign(conn, "acme", stratum, every=4, first=2, judged={g: stratum[g] for g in "bdh"})
        more = splits.assign(
            conn,
            "acme",
            stratum | {"m": "correction", "n": "rated"},
            every=4,
            first=2,
            judged={"h": stratum["h"]},
        )
    assert [name for name, side in before.items() if side == "holdout"] == ["b", "d", "h"]
    # i and j came after the last that was judged and before this was known: they keep their folds and count
    assert [name for name, side in after.items() if side == "holdout"] == ["b", "d", "h", "l"]
    assert more["m"] == "train" and more["n"] == "train"


def test_what_is_released_is_trained_on_for_good(store: Store) -> None:
    groups = dict.fromkeys("abcd", "correction")
    with store.begin() as conn:
        assert splits.assign(conn, "acme", groups, every=2)["b"] == "holdout"
        splits.release(conn, "acme", ["b", "never seen"])
        assert splits.assign(conn, "acme", groups, every=2) == dict(
            zip("abcd", ["train"] * 3 + ["holdout"], strict=True)
        )


def test_snapshots_of_the_same_content_are_one(store: Store) -> None:
    made = Snapshot(id="s1", project="acme", path="p", train=3, holdout=1, replay=0, dropped={"empty": 2})
    later = made.model_copy(update={"created_at": made.created_at + timedelta(days=1)})
    with store.begin() as conn:
        assert snapshots.add(conn, made) == made
        assert snapshots.add(conn, later) == made
        for n in range(2, 5):
            snapshots.add(conn, made.model_copy(update={"id": f"s{n}"}))
    with store.read() as conn:
        assert snapshots.get(conn, "acme", "s1") == made
        page = snapshots.list_by(conn, "acme", limit=2)
        assert [s.id for s in page] == ["s4", "s3"]
        assert [s.id for s in snapshots.list_by(conn, "acme", before="s3")] == ["s2", "s1"]
        with pytest.raises(NotFound, match=r"no snapshot 's9'. The newest are: s4, s3"):
            snapshots.get(conn, "acme", "s9")
    with pytest.raises(Conflict, match="other content"), store.begin() as conn:
        snapshots.add(conn, made.model_copy(update={"train": 4}))


def test_a_run_moves_through_its_states_and_ends_once(store: Store) -> None:
    run = Run(id="run_1", project="acme", snapshot="s1", recipe="sft", path="runs/run_1")
    with store.begin() as conn:
        runs.add(conn, run)
        assert runs.get(conn, "run_1") == run
        assert runs.set_state(conn, "run_1", RunState.RUNNING).state == RunState.RUNNING
        over = runs.set_state(conn, "run_1", RunState.FAILED, error=AWKWARD)
        assert over.finished_at is not None and over.error == AWKWARD.replace("\x00", "\ufffd")
        assert runs.set_state(conn, "run_1", RunState.FAILED) == over
        runs.add(conn, run.model_copy(update={"id": "run_2"}))
    for move in (RunState.RUNNING, RunState.SUCCEEDED, RunState.QUEUED):
        with pytest.raises(Conflict, match="is failed; it cannot become"), store.begin() as conn:
            runs.set_state(conn, "run_1", move)
    with pytest.raises(Conflict, match="exists already"), store.begin() as conn:
        runs.add(conn, run)
    with store.read() as conn:
        assert [r.id for r in runs.list_by(conn, "acme")] == ["run_2", "run_1"]
        assert [r.id for r in runs.list_by(conn, "acme", before="run_2")] == ["run_1"]
        assert [r.id for r in runs.list_by(conn, "acme", state=RunState.QUEUED)] == ["run_2"]
        with pytest.raises(NotFound, match=r"no run 'run_9'. The newest are: run_2"):
            runs.get(conn, "run_9")


def test_versions_keep_their_gate_report(store: Store) -> None:
    report = GateReport(
        project="acme", live=0, candidate=1, verdict=Verdict.PROMOTE, reasons=(AWKWARD,), seconds=1.5
    )
    with store.begin() as conn:
        assert versions.next_number(conn, "acme") == 1
        made = Version(project="acme", number=1, snapshot="s", run="r", text_adapter="t", sha256="a" * 64)
        versions.add(conn, made)
        assert versions.get(conn, "acme", 1) == made
        assert versions.next_number(conn, "acme") == 2
        assert versions.set_gate(conn, "acme", 1, report).gate == report
        versions.add(conn, Version(project="acme", number=2, parent=1, gate=report))
    with store.read() as conn:
        assert [v.number for v in versions.list_by(conn, "acme")] == [2, 1]
        assert [v.number for v in versions.list_by(conn, "acme", before=2)] == [1]
        assert versions.get(conn, "acme", 2).gate == report
        with pytest.raises(NotFound, match=r"no version 7. It has 1, 2 and 0"):
            versions.get(conn, "acme", 7)


def test_reports_are_found_by_the_version_that_was_live(store: Store) -> None:
    def report(live: int, candidate: int) -> GateReport:
        said = (f'"live":{live + 10}, as somebody wrote',)  # text in a report is no field of it
        return GateReport(
            project="acme", live=live, candidate=candidate, verdict=Verdict.REJECT, reasons=said
        )

    with store.begin() as conn:
        for number, live in ((1, 0), (2, 1), (3, 1), (4, 11)):
            versions.add(conn, Version(project="acme", number=number, gate=report(live, number)))
        versions.add(conn, Version(project="acme", number=5))
        projects.ensure(conn, Project(name="other", base_model="starter"))
        versions.add(conn, Version(project="other", number=1, gate=report(1, 1)))
    with store.read() as conn:
        assert [r.candidate for r in versions.reports_against(conn, "acme", 1)] == [3, 2]
        assert [r.candidate for r in versions.reports_against(conn, "acme", 11)] == [4]
        assert versions.reports_against(conn, "acme", 5) == []


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (Version(project="acme", number=1), Conflict, "has a version 1 already"),
        (Version(project="acme", number=2, parent=5), NotFound, "no version 5"),
        (Version(project="acme", number=2, state=VersionState.LIVE), Conflict, "added as live"),
        (Version(project="nope", number=1), NotFound, "no project 'nope'"),
    ],
)
def test_a_wrong_version_is_refused(store: Store, wrong: Version, error: type[Exception], words: str) -> None:
    with store.begin() as conn:
        versions.add(conn, Version(project="acme", number=1))
    with pytest.raises(error, match=words), store.begin() as conn:
        versions.add(conn, wrong)


def test_what_may_not_be_promoted(store: Store) -> None:
    with store.begin() as conn:
        versions.add(conn, Version(project="acme", number=1))
        versions.add(conn, Version(project="acme", number=2, text_adapter="x"))
        versions.set_state(conn, "acme", 2, VersionState.REJECTED)
    with pytest.raises(Conflict, match="has no adapter"), store.begin() as conn:
        versions.promote(conn, "acme", 1)
    with pytest.raises(Conflict, match="rejected by the gate"), store.begin() as conn:
        versions.promote(conn, "acme", 2)
    with pytest.raises(NotFound, match="no version 3"), store.begin() as conn:
        versions.promote(conn, "acme", 3)
    with pytest.raises(Conflict, match="promoted to nothing"), store.begin() as conn:
        versions.rollback(conn, "acme")
    with store.begin() as conn:
        assert versions.promote(conn, "acme", 2, force=True).live == 2
        assert versions.get(conn, "acme", 2).promoted_at is not None
    with pytest.raises(Conflict, match="never live"), store.begin() as conn:
        versions.rollback(conn, "acme", to=1)
    for state in (VersionState.REJECTED, VersionState.RETIRED, VersionState.CANDIDATE):
        with pytest.raises(Conflict, match="Promote and rollback alone"), store.begin() as conn:
            versions.set_state(conn, "acme", 2, state)
    with pytest.raises(Conflict, match="Promote and rollback alone"), store.begin() as conn:
        versions.set_state(conn, "acme", 1, VersionState.LIVE)


def test_rolling_back_goes_back_step_by_step(store: Store) -> None:
    lives = []
    with store.begin() as conn:
        for number in (1, 2, 3):
            versions.add(conn, Version(project="acme", number=number, text_adapter="x"))
            versions.promote(conn, "acme", number)
        lives = [versions.rollback(conn, "acme").live for _ in range(3)]
        assert versions.history(conn, "acme")[0] == (0, 1, True)
    assert lives == [2, 1, 0]


def test_the_loop_of_a_project_is_one_row(store: Store) -> None:
    with store.begin() as conn:
        assert loops.get(conn, "acme").state == LoopState.IDLE
        loop = Loop(project="acme", state=LoopState.GATING, snapshot="s", run="r", version=2, seen_seq=2**40)
        loops.save(conn, loop)
        assert loops.get(conn, "acme") == loop
        idle = Loop(project="acme", outcome="failed", error=AWKWARD.replace("\x00", ""))
        loops.save(conn, idle)
        assert loops.get(conn, "acme") == idle
    with pytest.raises(NotFound), store.begin() as conn:
        loops.save(conn, Loop(project="nope"))
    with pytest.raises(NotFound), store.read() as conn:
        loops.get(conn, "nope")


def test_a_lease_has_one_holder_until_it_runs_out(store: Store) -> None:
    with store.begin() as conn:
        assert leases.holder(conn, "loop:acme") is None
        assert leases.acquire(conn, "loop:acme", "one", 60)
        assert leases.acquire(conn, "loop:acme", "one", 60)
        assert not leases.acquire(conn, "loop:acme", "two", 60)
        assert not leases.renew(conn, "loop:acme", "two", 60)
        assert not leases.release(conn, "loop:acme", "two")
        assert leases.renew(conn, "loop:acme", "one", 30)
        owner, left = leases.holder(conn, "loop:acme") or ("", 0.0)
        assert owner == "one" and 25 < left <= 30
        assert leases.renew(conn, "loop:acme", "one", -1)  # run out
        assert leases.holder(conn, "loop:acme") is None
        assert not leases.renew(conn, "loop:acme", "one", 60)
        assert leases.acquire(conn, "loop:acme", "two", 60)
        assert leases.release(conn, "loop:acme", "two")
        assert leases.acquire(conn, "loop:acme", "one", 60)


def test_a_block_that_raises_leaves_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.begin() as conn:
        projects.add(conn, Project(name="b", base_model="m"))
        _ = 1 / 0
    with store.read() as conn:
        assert projects.find(conn, "b") is None


def test_a_reader_sees_one_moment_and_cannot_write(store: Store) -> None:
    with store.read() as conn:
        assert counting.generations(conn, "acme") == 1
        with store.begin() as writer:
            projects.add(writer, Project(name="b", base_model="m"))
        assert projects.find(conn, "b") is None
    with pytest.raises(StorageError, match="cannot be written"), store.read() as conn:
        projects.add(conn, Project(name="c", base_model="m"))
    with store.begin() as conn:  # the connection that was a reader's can write again
        projects.add(conn, Project(name="c", base_model="m"))


def test_a_transaction_inside_another_is_a_mistake_that_is_named(store: Store) -> None:
    with store.begin(), pytest.raises(RuntimeError, match="inside"), store.begin():
        pass
    with store.begin() as conn:
        projects.get(conn, "acme")


def test_a_version_carries_what_it_and_its_parents_learned_but_not_what_a_fresh_one_left_behind(
    store: Store,
) -> None:
    fresh = {4: True}
    with store.begin() as conn:
        for number in range(1, 6):
            parent = number - 1
            version = Version(
                project="acme", number=number, parent=parent, text_adapter="a", fresh=fresh.get(number, False)
            )
            versions.add(conn, version)
            lessons.add(conn, "acme", number, [f"fb_{number}", "fb_old"] if number < 4 else [f"fb_{number}"])
    with store.read() as conn:
        assert lessons.lineage(conn, "acme", 3) == [3, 2, 1]
        assert lessons.lineage(conn, "acme", 5) == [5, 4]  # 4 started from the base models
        assert lessons.learned(conn, "acme", 3) == {"fb_1", "fb_2", "fb_3", "fb_old"}
        assert lessons.learned(conn, "acme", 5) == {"fb_4", "fb_5"}
        assert lessons.carriers(conn, "acme", ["fb_2"]) == [2, 3]
        assert lessons.carriers(conn, "acme", ["fb_4"]) == [4, 5]
        assert lessons.carriers(conn, "acme", ["fb_9"]) == []


def test_a_withdrawn_version_is_never_live_again(store: Store) -> None:
    with store.begin() as conn:
        for number in (1, 2, 3):
            versions.add(conn, Version(project="acme", number=number, parent=number - 1, text_adapter="a"))
            versions.promote(conn, "acme", number)
        with pytest.raises(Conflict, match="is live"):
            versions.withdraw(conn, "acme", 3)
        versions.withdraw(conn, "acme", 2)
        assert versions.rollback_target(conn, "acme") == 1
        with pytest.raises(Conflict, match="was taken back"):
            versions.promote(conn, "acme", 2, force=True)
        with pytest.raises(Conflict, match="was taken back"):
            versions.rollback(conn, "acme", to=2)
        assert versions.rollback(conn, "acme").live == 1
