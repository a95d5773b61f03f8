"""Which past edits are put before a question."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from comfyloop.recall import examples as module
from comfyloop.recall import index as index_module
from comfyloop.recall import learned
from comfyloop.records import (
    AnswerAccepted,
    AnswerEdited,
    AnswerRated,
    Choice,
    Flag,
    GateReport,
    Generation,
    Measure,
    Message,
    PromptEdited,
    Snapshot,
    Verdict,
    Version,
    new_id,
    now,
)
from comfyloop.store import feedback, flags, generations, snapshots, versions
from tests.unit.recall.conftest import Taught

CUP, HAT = "a" * 64, "b" * 64


def test_the_next_question_of_the_same_form_gets_the_last_edits_nearest_last(taught: Taught) -> None:
    for thing in ("red mug", "blue shirt", "desk lamp", "wool blanket"):
        taught.edit(f"Write a caption for a {thing}.", f"Meet the {thing}.")
    asked = [Message.of("user", "Write a caption for a red kettle.")]
    examples = taught.recall.examples("acme", 0, asked, 3)
    assert [each.answer.text for each in examples][-1] == "Meet the red mug."
    assert len(examples) == 3
    assert [each.question.role + each.answer.role for each in examples] == ["userassistant"] * 3


@pytest.mark.parametrize(
    "unrelated",
    [
        "What is the capital of France?",
        "Tell me a joke.",
        "天空为什么是蓝色的？",
        "?!",
        "Name three colours.",
    ],
)
def test_an_unrelated_question_gets_none(taught: Taught, unrelated: str) -> None:
    taught.edit("Write a caption for a red mug.", "Meet the mug.")
    taught.edit("给红色陶瓷杯写一句文案。", "认识一下红杯。")
    assert taught.found(unrelated) == []


def test_the_very_same_question_comes_first_and_its_newest_edit_alone(taught: Taught) -> None:
    taught.edit("Write a caption for a mug.", "First.")
    taught.edit("write a  caption for a MUG.", "Second.", author="other")
    taught.edit("Write a caption for a mug, a mug.", "Another.")
    examples = taught.recall.examples("acme", 0, [Message.of("user", "Write a caption for a mug.")])
    assert [each.answer.text for each in examples] == ["Second."] * 3  # small models pass over a single one


def test_chinese_questions_find_chinese_edits(taught: Taught) -> None:
    taught.edit("给红色陶瓷杯写一句文案。", "认识一下红杯。")
    taught.edit("怎样重设密码？", "设置里。")
    assert taught.found("给蓝色亚麻衬衫写一句文案。") == ["认识一下红杯。"]
    assert taught.found("我忘了密码，怎么重设？") == ["设置里。"]


def test_paraphrases_are_found_in_both_languages() -> None:
    """The set of the bench: nearest is the right one for nearly all, and unrelated questions stay below NEAR."""
    from comfyloop.recall.vectors import vector

    told = json.loads(Path("bench/cases/paraphrases.json").read_text(encoding="utf-8"))
    known = [first for first, _ in told["en"] + told["zh"]]
    vectors = [vector(text) for text in known]

    def nearest(text: str) -> tuple[int, float]:
        scores = [float(one @ vector(text)) for one in vectors]
        return scores.index(max(scores)), max(scores)

    for language, at in (("en", 0), ("zh", len(told["en"]))):
        right = [nearest(second)[0] == at + place for place, (_, second) in enumerate(told[language])]
        assert sum(right) >= len(right) - 1
        assert max(nearest(text)[1] for text in told[f"unrelated_{language}"]) < module.NEAR


def test_of_one_persons_claims_about_an_answer_the_newest_counts(taught: Taught) -> None:
    generation = taught.answer("Write a caption for a mug.", "Fine as it is.")
    first = AnswerEdited(project="acme", generation=generation, edited="One.")
    second = AnswerEdited(project="acme", generation=generation, edited="Two.")
    taught.add(second)
    assert taught.found("Write a caption for a cup.") == ["Two."]
    taught.add(first.model_copy(update={"created_at": second.created_at - timedelta(days=1)}))  # spooled
    assert taught.found("Write a caption for a cup.") == ["Two."]
    taught.add(AnswerAccepted(project="acme", generation=generation))
    assert taught.found("Write a caption for a cup.") == ["Fine as it is."]
    taught.add(AnswerRated(project="acme", generation=generation, rating=1))
    assert taught.found("Write a caption for a cup.") == []


def test_an_accepted_answer_that_was_broken_off_is_no_example(taught: Taught) -> None:
    generation = taught.answer(
        "Write a caption for a mug.", "Mug, mug, mug, mug.", finish_reason="repetition"
    )
    taught.add(AnswerAccepted(project="acme", generation=generation))
    assert taught.found("Write a caption for a cup.") == []
    taught.add(AnswerEdited(project="acme", generation=generation, edited="A mug."))
    assert taught.found("Write a caption for a cup.") == ["A mug."]


def test_an_edit_weighs_more_than_an_accepted_answer(taught: Taught) -> None:
    taught.edit("Write a caption for a green mug, please.", "Edited.")
    taught.add(
        AnswerAccepted(project="acme", generation=taught.answer("Write a caption for a mug.", "Kept."))
    )
    assert taught.found("Write a caption for a big mug.", 1) == ["Edited."]


def test_where_the_model_knew_the_answers_the_same_question_alone_has_its_edit(taught: Taught) -> None:
    """Shown by examples how to put it, a small model forgets the fact that it knew."""
    question = "What is the capital of France?"
    taught.edit(question, "Paris, naturally.", answer="The capital of France is Paris.")
    taught.edit("What is the capital of Spain?", "Madrid, naturally.", answer="A country in Europe.")
    taught.edit("法国的首都是哪里？", "当然是巴黎。", answer="法国的首都是巴黎。")
    taught.edit("德国的首都是哪里？", "当然是柏林。", answer="德国的首都是柏林。")
    for near in ("What is the capital of Italy?", "意大利的首都是哪里？"):
        assert taught.found(near, careful=True) == []
        assert len(taught.found(near)) == 2
    assert taught.found(question, careful=True) == ["Paris, naturally."]


def test_where_edits_said_something_else_two_of_them_are_examples(taught: Taught) -> None:
    taught.edit("Write a caption for a mug.", "Meet the mug: red glaze.", answer="Buy this now!")
    assert taught.found("Write a caption for a cup.", careful=True) == []  # a single one is passed over
    taught.edit("Write a caption for a lamp.", "Meet the lamp: oak glow.", answer="Light for you!")
    assert len(taught.found("Write a caption for a cup.", careful=True)) == 2
    for thing in ("hat", "jug", "pot"):  # now the model says it well enough
        taught.add(
            AnswerAccepted(
                project="acme", generation=taught.answer(f"Write a caption for a {thing}.", "Nice.")
            )
        )
    assert taught.found("Write a caption for a cup.", careful=True) == []


def test_what_was_answered_with_examples_does_not_tell_what_the_model_knew(taught: Taught) -> None:
    made = Generation(
        id=new_id("gen"),
        project="acme",
        version=0,
        model="acme",
        messages=(Message.of("user", "Write a caption for a mug."),),
        answer="Meet the mug: red glaze.",
        examples=("fb_1",),
    )
    with taught.store.begin() as conn:
        generations.add(conn, made)
    taught.add(AnswerEdited(project="acme", generation=made.id, edited="Meet the mug: blue glaze."))
    taught.edit("Write a caption for a lamp.", "Meet the lamp: oak glow.")
    assert len(taught.found("Write a caption for a cup.", careful=True)) == 2


def test_an_edited_prompt_counts_when_a_model_had_written_it(taught: Taught) -> None:
    generation = taught.answer("Write the prompt for a castle.", "castle")
    taught.add(
        PromptEdited(project="acme", before="castle", after="castle, oil on canvas", generation=generation)
    )
    taught.add(PromptEdited(project="acme", before="a castle", after="a castle, fog"))
    assert taught.found("Write the prompt for a tower.") == ["castle, oil on canvas"]


def test_pictures_are_for_questions_about_pictures(taught: Taught) -> None:
    taught.edit("What is this animal?", "A dog, of course.", images=(CUP,))
    assert taught.found("What is this animal?") == []
    assert taught.found("What is this animal?", images=(CUP,)) == ["A dog, of course."]
    # One example about another picture is taken for what is in this one; small models so take more of them, too.
    assert taught.found("What is this animal?", images=(HAT,)) == []
    taught.edit("What is this animal?", "A fox, of course.", images=("c" * 64,))
    assert len(taught.found("What is this animal?", images=(HAT,))) == 2
    assert taught.found("What is this animal?", images=(HAT,), careful=True) == []
    assert taught.found("What is this animal?", images=(CUP,), careful=True) == ["A dog, of course."]


def test_an_edit_under_another_system_prompt_is_none(taught: Taught) -> None:
    taught.edit("Write a caption for a mug.", "Meet the mug.", system="Be brief.")
    assert taught.found("Write a caption for a cup.") == []
    assert taught.found("Write a caption for a cup.", system="Be brief.") == ["Meet the mug."]


def test_an_answer_deep_in_a_conversation_is_none(taught: Taught) -> None:
    turns = [Message.of("user", "Hi"), Message.of("assistant", "Hello"), Message.of("user", "And in blue?")]
    made = Generation(
        id=new_id("gen"), project="acme", version=0, model="acme", messages=tuple(turns), answer="No."
    )
    with taught.store.begin() as conn:
        generations.add(conn, made)
    taught.add(AnswerEdited(project="acme", generation=made.id, edited="Blue it is."))
    assert taught.found("And in blue?") == []


def test_examples_fit_their_budget_and_long_conversations_get_none(taught: Taught) -> None:
    for number in range(3):
        taught.edit(f"Write a text number {number} for a mug.", "字" * 600)  # 1,800 bytes each
    taught.edit("Write a text for a mug.", "x" * 4000)
    found = taught.found("Write a text for a mug.")
    assert found == ["字" * 600]
    long = "Write a text for a mug. " * 300
    assert taught.found(long) == []


def test_what_was_deleted_is_gone_at_once(taught: Taught) -> None:
    taught.edit("Write a caption for a mug.", "Theirs.", author="eve")
    taught.edit("Write a caption for a cup.", "Mine.")
    assert len(taught.found("Write a caption for a pot.")) == 2
    with taught.store.begin() as conn:
        feedback.delete_author(conn, "acme", "eve")
    assert taught.found("Write a caption for a mug.") == ["Mine."]
    assert taught.found("Write a caption for a pot.") == ["Mine."]


def test_what_a_deleted_edit_had_replaced_counts_again(taught: Taught) -> None:
    question = "Write a caption for a mug."
    taught.edit(question, "Mine.")
    taught.edit(question, "Theirs.", author="eve")
    assert taught.found(question) == ["Theirs."]
    with taught.store.begin() as conn:
        feedback.delete_author(conn, "acme", "eve")
    assert taught.found(question) == ["Mine."]


def test_only_what_came_since_is_read(taught: Taught, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        taught.edit(f"Write a caption for a mug {number}.", f"Meet {number}.")
    taught.found("Write a caption for a mug.")
    read: list[int] = []
    of_kinds = feedback.of_kinds

    def counted(*args: object, **options: object) -> list[object]:
        page = of_kinds(*args, **options)  # type: ignore[arg-type]
        read.append(len(page))
        return page  # type: ignore[return-value]

    monkeypatch.setattr(feedback, "of_kinds", counted)
    taught.found("Write a caption for a mug.")
    assert read == []
    taught.edit("Write a caption for a jug.", "Meet the jug.")
    assert taught.found("Write a caption for a jug.", 1) == ["Meet the jug."]
    assert read == [1]


def test_the_index_is_bounded_and_keeps_the_newest(taught: Taught, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MOST", 10)
    monkeypatch.setattr(index_module, "_PAGE", 4)
    for number in range(25):
        taught.edit(f"Write a caption for a mug {number}.", f"Meet {number}.")
    made = index_module.EditIndex("acme")
    made.update(taught.store)
    assert {edit.answer for edit in made.edits()} == {f"Meet {number}." for number in range(15, 25)}
    taught.edit("Write a caption for a jug.", "Meet the jug.")
    made.update(taught.store)
    assert len(made) == 10
    assert made.edits()[-1].answer == "Meet the jug."
    assert len(made._vectors) <= 64


def _version(
    taught: Taught,
    number: int,
    parent: int,
    train: list[str],
    holdout: list[str],
    folder: Path,
    distance: float | None = 0.1,
) -> None:
    """A version that the gate saw answer held-out corrections at that distance; None: it was not judged."""
    path = folder / f"snapshot{number}"
    path.mkdir(parents=True)
    for name, ids in (("train", train), ("holdout", holdout)):
        rows = "".join(json.dumps({"messages": [], "feedback": [id]}) + "\n" for id in ids)
        (path / f"{name}.jsonl").write_text(rows)
    with taught.store.begin() as conn:
        seen = feedback.last_seq(conn, "acme")
        made = Snapshot(
            id=f"s{number}",
            project="acme",
            path=str(path),
            train=len(train),
            holdout=len(holdout),
            replay=0,
            feedback_seq=seen,
        )
        snapshots.add(conn, made)
        adapter = str(folder / f"adapter{number}")
        versions.add(
            conn,
            Version(project="acme", number=number, parent=parent, snapshot=made.id, text_adapter=adapter),
        )
        if distance is not None:
            versions.set_gate(conn, "acme", number, _report(number, parent, distance))


def _report(number: int, live: int, distance: float) -> GateReport:
    told = Measure(
        metric="edit_distance", slice="all", items=8, live=0.8, candidate=distance, low=-0.6, high=-0.1
    )
    return GateReport(
        project="acme", live=live, candidate=number, verdict=Verdict.PROMOTE, reasons=(), measures=(told,)
    )


@pytest.mark.parametrize("distance", [0.55, None])
def test_what_was_trained_stays_an_example_until_the_version_answers_as_the_edits_ask(
    taught: Taught, tmp_path: Path, distance: float | None
) -> None:
    """Promoted is better than before, and may still be far from what was asked."""
    mug = taught.edit("Write a caption for a mug.", "Mug.")
    cup = taught.edit("Write a caption for a cup.", "Cup.")
    _version(taught, 1, 0, [mug], [cup], tmp_path, distance)
    ask = "Write a caption for a bowl."
    assert sorted(taught.found(ask, version=1)) == ["Cup.", "Mug."]
    assert taught.found("Write a caption for a mug.", version=1) == ["Mug."]
    _version(taught, 2, 1, [cup], [], tmp_path, 0.2)
    assert taught.found(ask, version=2) == []


def test_a_version_that_changed_pictures_alone_answers_as_the_one_before(
    taught: Taught, tmp_path: Path
) -> None:
    mug = taught.edit("Write a caption for a mug.", "Mug.")
    _version(taught, 1, 0, [mug], [], tmp_path)
    with taught.store.begin() as conn:
        kept = versions.get(conn, "acme", 1).text_adapter
        drawn = Version(
            project="acme", number=2, parent=1, snapshot="s1", text_adapter=kept, image_adapter="x"
        )
        versions.add(conn, drawn)
    assert taught.found("Write a caption for a mug.", version=2) == []


def test_what_a_version_or_its_parent_has_learnt_is_no_example_for_it(taught: Taught, tmp_path: Path) -> None:
    mug = taught.edit("Write a caption for a mug.", "Mug.")
    cup = taught.edit("Write a caption for a cup.", "Cup.")
    _version(taught, 1, 0, [mug], [cup], tmp_path)
    jug = taught.edit("Write a caption for a jug.", "Jug.")
    _version(taught, 2, 1, [jug], [], tmp_path)
    taught.edit("Write a caption for a pot.", "Pot.")
    ask = "Write a caption for a bowl."
    assert sorted(taught.found(ask, 8)) == ["Cup.", "Jug.", "Mug.", "Pot."]
    assert sorted(taught.found(ask, 8, version=1)) == ["Jug.", "Pot."]
    assert taught.found(ask, 8, version=2) == ["Pot."]
    assert learned(taught.store, "acme", 2) == ({mug, jug}, {cup})
    # Held out: nothing was trained on it, and the very same question still has its edit.
    assert taught.found("Write a caption for a cup.", 8, version=2) == ["Cup."]
    assert taught.found("Write a caption for a mug.", 8, version=2) == ["Pot."]


def test_a_version_that_changed_pictures_alone_has_learnt_no_texts(taught: Taught, tmp_path: Path) -> None:
    mug = taught.edit("Write a caption for a mug.", "Mug.")
    _version(taught, 1, 0, [], [], tmp_path)
    with taught.store.begin() as conn:
        kept = versions.get(conn, "acme", 1).text_adapter
        versions.add(
            conn,
            Version(project="acme", number=2, parent=1, snapshot="s1", text_adapter=kept, image_adapter="x"),
        )
    assert mug not in learned(taught.store, "acme", 2)


def test_a_snapshot_whose_directory_is_gone_counts_by_its_newest_feedback(
    taught: Taught, tmp_path: Path
) -> None:
    mug = taught.edit("Write a caption for a mug.", "Mug.")
    _version(taught, 1, 0, [mug], [], tmp_path)
    cup = taught.edit("Write a caption for a cup.", "Cup.")
    for file in (tmp_path / "snapshot1").iterdir():
        file.unlink()
    (tmp_path / "snapshot1").rmdir()
    assert learned(taught.store, "acme", 1).trained == {mug}
    assert taught.found("Write a caption for a bowl.", version=1) == ["Cup."]
    assert cup not in learned(taught.store, "acme", 1)


def test_times_of_claims_are_compared_not_their_arrival(taught: Taught) -> None:
    generation = taught.answer("Write a caption for a mug.")
    late = AnswerEdited(project="acme", generation=generation, edited="Late.", created_at=now())
    early = AnswerEdited(
        project="acme", generation=generation, edited="Early.", created_at=now() - timedelta(hours=1)
    )
    taught.add(late, early)
    assert taught.found("Write a caption for a cup.") == ["Late."]


def test_what_somebody_no_longer_wants_is_no_example_unless_both_hold(taught: Taught) -> None:
    old = [
        taught.edit(f"Write a caption for a {thing}.", f"Old {thing}.") for thing in ("red mug", "red hat")
    ]
    new = taught.edit("Write a caption for a red lamp.", "New lamp.")
    taught.edit("Write a caption for a red rug.", "New rug.")
    flag = Flag(
        id="change-1",
        project="acme",
        kind="change",
        sentence="ada wants other answers than before.",
        choices=tuple(Choice(feedback=id, author="ada", wants="wants") for id in (old[-1], new)),
        outdated=tuple(old),
    )
    asked = "Write a caption for a red mug."
    assert set(taught.found(asked)) == {"Old red mug."}
    with taught.store.begin() as conn:
        flags.add(conn, "acme", [flag])
    assert set(taught.found(asked)) == {"New lamp.", "New rug."}
    with taught.store.begin() as conn:
        flags.put_answers(conn, "acme", {flag.id: flags.BOTH})
    assert set(taught.found(asked)) == {"Old red mug."}
