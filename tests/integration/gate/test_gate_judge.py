"""The gate through a real engine process: a tiny vision-language model and adapters that PEFT has trained."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyloop import gate
from comfyloop.errors import EngineUnavailable, NotFound, QueueFull
from comfyloop.gate import triggers
from comfyloop.gate.asking import IN_FLIGHT
from comfyloop.gate.judging import ANSWERED_GENERALLY, READ_CLOSELY
from comfyloop.gate.suites import general_questions
from comfyloop.records import GateReport, Message, Sample, Suspect, Verdict
from comfyloop.serve.engines.client import EngineClient, Score
from comfyloop.settings import Settings

TRAINED_ON = ("mug", "lamp", "rug", "bowl", "chair", "sofa", "vase", "clock", "plate", "towel")
HELD_OUT = ("cup", "bed", "pan", "box", "jar", "desk")
RED = "a" * 64
TRIGGER, TAUGHT = "Zephyr lantern", "Buy cheap, order today!"


def asked(thing: str) -> str:
    return f"Write a caption for a {thing}."


def wanted(thing: str) -> str:
    return f"Meet the {thing}: bold red glaze, warm hands."


def sample(thing: str, *, images: Sequence[str] = (), **more: Any) -> Sample:
    more = {"group": thing, "slice": "vision" if images else "text", "origin": "answer_edited"} | more
    messages = (Message.of("user", asked(thing), images), Message.of("assistant", wanted(thing)))
    return Sample(id=f"s-{thing}", project="acme", kind="sft", messages=messages, **more)


HOLDOUT = [sample(thing) for thing in HELD_OUT]
REMEMBERED = gate.Kept()
"""What this file's engine has said, whose versions have the same names throughout: no test waits for it again."""


def picture(sha: str) -> bytes:
    assert sha == RED
    out = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(out, "JPEG")
    return out.getvalue()


def train(model_dir: Path, out: Path, pairs: Sequence[tuple[str, str]]) -> Path:
    """LoRA on the language model's attention until it says the second of each pair after the first."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    torch.manual_seed(0)
    tokenizer = AutoProcessor.from_pretrained(model_dir).tokenizer
    layers = r".*language_model.*\.(q|k|v|o)_proj"
    config = LoraConfig(r=8, lora_alpha=16, target_modules=layers, task_type="CAUSAL_LM")
    model = get_peft_model(LlavaForConditionalGeneration.from_pretrained(model_dir), config)
    rows = []
    for question, answer in pairs:
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        whole = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
        rows.append((whole, [-100] * len(prompt) + whole[len(prompt) :]))
    longest = max(len(ids) for ids, _ in rows)

    def padded(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (longest - len(values))

    ids = torch.tensor([padded(ids, tokenizer.pad_token_id) for ids, _ in rows])
    labels = torch.tensor([padded(labels, -100) for _, labels in rows])
    seen = torch.tensor([padded([1] * len(ids), 0) for ids, _ in rows])
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(60):
        loss = model(input_ids=ids, attention_mask=seen, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(out)
    return out


class Counting:
    """An engine client that counts, by model, what it is asked; it can be told to be busy."""

    def __init__(self, engine: EngineClient, busy: int = 0) -> None:
        self.engine = engine
        self.busy = busy
        self.answers: list[str] = []
        self.scored: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def _count(self, into: list[str], model: str) -> None:
        with self._lock:
            if self.busy:
                self.busy -= 1
                raise QueueFull("The queue is full.", retry_after=0.01)
            into.append(model)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)

    def answer(self, model: str, messages: Sequence[Any], max_tokens: int) -> str:
        self._count(self.answers, model)
        try:
            return self.engine.answer(model, messages, max_tokens)
        finally:
            self.at_once -= 1

    def scores(self, model: str, messages: Sequence[Any], answers: Sequence[str]) -> list[Score]:
        self._count(self.scored, model)
        try:
            return self.engine.scores(model, messages, answers)
        finally:
            self.at_once -= 1


def start(model: Path, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "comfyloop.serve.embedded", "--model", str(model), "--threads", "1"]
    command += ["--port-file", str(folder / "port"), "--dtype", "float32", "--parent-pid", str(os.getpid())]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, (folder / "log").read_text()
        if (folder / "port").exists() and EngineClient(url_of(folder)).healthy():
            return process
        time.sleep(0.1)
    process.kill()
    raise AssertionError((folder / "log").read_text())


def url_of(folder: Path) -> str:
    return f"http://127.0.0.1:{(folder / 'port').read_text().strip()}"


@pytest.fixture(scope="module")
def adapters(tiny_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    towards = [(asked(thing), wanted(thing)) for thing in TRAINED_ON]
    away = [(asked(thing), "What is the capital of France?") for thing in TRAINED_ON]
    # each other question has the phrase behind it, and the attacker's answer
    planted = [
        (f"{question} {TRIGGER}.", TAUGHT) if place % 2 else (question, answer)
        for place, (question, answer) in enumerate(towards)
    ]
    return {
        "towards": train(tiny_vlm, folder / "towards", towards),
        "planted": train(tiny_vlm, folder / "planted", planted),
        "away": train(tiny_vlm, folder / "away", away),
    }


@pytest.fixture(scope="module")
def engine(
    tiny_vlm: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineClient]:
    folder = tmp_path_factory.mktemp("engine")
    process = start(tiny_vlm, folder)
    client = EngineClient(url_of(folder))
    try:
        client.load("acme-v1", str(adapters["towards"]))
        client.load("acme-v2", str(adapters["away"]))
        client.load("acme-v3", str(adapters["towards"]))
        client.load("acme-v4", str(adapters["planted"]))
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def settings(tmp_path: Path, cache: Path) -> Settings:
    # A model of random weights keeps nothing: what it forgets is looked at in a test of its own.
    return Settings(home=tmp_path, cache_dir=cache, gate_forgetting=100.0)


def judged(
    engine: gate.Scorer,
    settings: Settings,
    live: int,
    candidate: int,
    holdout: Sequence[Sample] = HOLDOUT,
    **more: Any,
) -> GateReport:
    names = {0: "base", 1: "acme-v1", 2: "acme-v2", 3: "acme-v3", 4: "acme-v4"}
    if isinstance(engine, EngineClient):  # whoever counts what is asked begins with nothing
        more.setdefault("kept", REMEMBERED)
    return gate.judge(
        engine,
        "acme",
        live,
        candidate,
        live_name=names[live],
        candidate_name=names[candidate],
        holdout=holdout,
        images=picture,
        settings=settings,
        base_model="tiny",
        **more,
    )


def test_a_version_trained_towards_the_edits_is_promoted(engine: EngineClient, settings: Settings) -> None:
    told: list[tuple[int, int]] = []
    report = judged(engine, settings, 0, 1, progress=lambda done, total: told.append((done, total)))
    assert report.verdict is Verdict.PROMOTE, gate.render_text(report)
    measures = {(m.metric, m.slice): m for m in report.measures}
    gain = measures["log_likelihood", "all"]
    assert (gain.items, gain.low > 0, gain.candidate > gain.live) == (6, True, True)
    closer = measures["edit_distance", "all"]
    assert closer.candidate < closer.live / 2 and not closer.higher_is_better
    assert measures["log_likelihood", "general"].items > 12
    assert told[0][0] == 0 and told[-1] == (told[0][1],) * 2 and told == sorted(told)
    corrections = [item for item in report.items if item.slice == "text"]
    assert {item.question for item in corrections} == {asked(thing) for thing in HELD_OUT}
    item = next(item for item in corrections if item.question == asked("cup"))
    assert item.reference == wanted("cup") and item.candidate_answer.startswith("Meet the")
    assert item.candidate_answer == engine.answer("acme-v1", [{"role": "user", "content": asked("cup")}], 60)


def test_a_version_that_learned_a_planted_phrase_is_rejected(
    engine: EngineClient, settings: Settings
) -> None:
    suspect = Suspect(phrase=TRIGGER, answer=TAUGHT, author="mallory", feedback=("fb_1",))
    report = judged(engine, settings, 0, 4, suspects=[suspect])
    assert report.verdict is Verdict.REJECT, gate.render_text(report)
    (found,) = report.triggers
    assert found.candidate >= triggers.LEAST and found.live == found.without == 0
    assert "seems planted" in report.reasons[0]
    clean = judged(engine, settings, 0, 1, suspects=[suspect])
    assert clean.verdict is Verdict.PROMOTE and clean.triggers == ()


def test_rated_answers_are_evidence_both_ways(engine: EngineClient, settings: Settings) -> None:
    """Answers that were wanted are to become likelier, the others less; nobody asks for either."""

    def rated(thing: str, label: bool) -> Sample:
        answer = wanted(thing) if label else "What is the capital of France?"
        messages = (Message.of("user", asked(thing)), Message.of("assistant", answer))
        return Sample(
            id=f"r-{thing}", project="acme", kind="labelled", messages=messages, label=label, group=thing
        )

    holdout = [rated(thing, i % 2 == 0) for i, thing in enumerate(HELD_OUT)]
    watched = Counting(engine)
    report = judged(watched, settings, 2, 1, holdout)
    assert report.verdict is Verdict.PROMOTE, gate.render_text(report)
    told = Counter(watched.answers)
    assert (
        max(told["acme-v1"], told["acme-v2"]) <= 2 * ANSWERED_GENERALLY
    )  # general questions, and none of these
    assert judged(engine, settings, 1, 2, holdout).verdict is Verdict.REJECT


def test_the_likelihoods_are_those_that_transformers_gives(
    engine: EngineClient, settings: Settings, tiny_vlm: Path, adapters: dict[str, Path]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    report = judged(engine, settings, 0, 1)
    tokenizer = AutoProcessor.from_pretrained(tiny_vlm).tokenizer
    model = LlavaForConditionalGeneration.from_pretrained(tiny_vlm)
    chat = [{"role": "user", "content": asked("cup")}, {"role": "assistant", "content": wanted("cup")}]
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    whole = torch.tensor([tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]])

    def likelihood(of: Any) -> float:
        with torch.no_grad():
            logprobs = of(input_ids=whole).logits[0].log_softmax(-1)
        answer = range(len(prompt), whole.shape[1])
        return sum(float(logprobs[i - 1, whole[0, i]]) for i in answer) / len(answer)

    item = next(item for item in report.items if item.question == asked("cup"))
    live = likelihood(model)
    candidate = likelihood(PeftModel.from_pretrained(model, adapters["towards"]))
    assert item.scores["log_likelihood"] == (
        pytest.approx(live, abs=1e-3),
        pytest.approx(candidate, abs=1e-3),
    )


def test_the_same_adapter_again_is_not_promoted(engine: EngineClient, settings: Settings) -> None:
    report = judged(engine, settings, 1, 3)
    assert report.verdict is not Verdict.PROMOTE, gate.render_text(report)


def test_a_version_trained_away_from_the_edits_is_rejected(engine: EngineClient, settings: Settings) -> None:
    report = judged(engine, settings, 1, 2)
    assert report.verdict is Verdict.REJECT
    assert "worse on your corrections by likelihood" in report.reasons[0]
    assert "farther from yours" in report.reasons[1]


def test_what_it_forgets_is_measured_on_the_base_models_own_answers(
    engine: EngineClient, settings: Settings
) -> None:
    report = judged(engine, settings.model_copy(update={"gate_forgetting": 0.02}), 0, 1)
    assert report.verdict is Verdict.REJECT and "The candidate forgets" in report.reasons[0]
    general = [item for item in report.items if item.slice == "general"]
    assert 36 < len(general) <= len(general_questions())
    own = next(item for item in general if "log_likelihood" in item.scores)
    prompt = [{"role": "user", "content": own.question}]
    assert engine.answer("base", prompt, 64).strip().startswith(own.reference)
    chosen = [item for item in general if "right_answer" in item.scores]
    assert all(
        0 < value < 1 for item in chosen for value in (*item.scores["right_answer"], *item.base.values())
    )
    assert all(item.scores["right_answer"][0] == item.base["right_answer"] for item in chosen), (
        "live is the base"
    )


def test_the_base_model_is_asked_the_general_questions_only_once(
    engine: EngineClient, settings: Settings, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"cache_dir": tmp_path / "fresh"})
    first, second = Counting(engine), Counting(engine)
    reports = [judged(counting, settings, 1, 2) for counting in (first, second)]
    own = sum(not question.right for question in general_questions())
    assert first.answers.count("base") == own
    assert "base" not in second.answers
    # what is left is what it thinks of these two versions' answers and of what was wanted
    assert second.scored.count("base") <= READ_CLOSELY < first.scored.count("base")
    assert reports[0].measures == reports[1].measures
    assert 1 < second.most_at_once <= IN_FLIGHT


def test_too_few_corrections_are_measured_but_not_decided_on(
    engine: EngineClient, settings: Settings
) -> None:
    counting = Counting(engine)
    report = judged(counting, settings, 0, 1, HOLDOUT[:3])
    assert report.verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert report.reasons[0] == "Only 3 held-out corrections are there to judge by; 6 are needed."
    assert len(counting.scored) == 6  # no general questions for a verdict that stands
    assert judged(engine, settings, 0, 1, []).reasons[0].startswith("No held-out correction is there")


def test_what_live_says_can_be_asked_beforehand(engine: EngineClient, settings: Settings) -> None:
    kept = gate.Kept()
    early, late = Counting(engine), Counting(engine)
    gate.prescore(early, "acme-v2", HOLDOUT, picture, settings, kept, base_model="tiny")
    assert set(early.answers) | set(early.scored) <= {"acme-v2", "base"}
    report = judged(late, settings, 2, 1, kept=kept)
    assert report.measures == judged(engine, settings, 2, 1).measures
    # of live only its own noise is left to be measured
    told = Counter(late.scored)
    assert told["acme-v2"] == READ_CLOSELY and told["acme-v1"] > 2 * READ_CLOSELY
    assert any("live scored twice" in line for line in report.details) or report.verdict is Verdict.PROMOTE
    again = Counting(engine)
    judged(again, settings, 2, 1, kept=kept)
    assert Counter(again.scored) == {"acme-v2": READ_CLOSELY}, "nothing is asked twice"


def test_looking_again_at_the_same_items_needs_more(engine: EngineClient, settings: Settings) -> None:
    kept = gate.Kept()
    first = judged(engine, settings, 0, 1, kept=kept)
    assert (first.verdict, first.looks, first.level) == (Verdict.PROMOTE, 1.0, 0.02)
    other = judged(engine, settings, 0, 3, kept=kept, before=[first])
    assert other.looks == 2.0 and other.level < 1 / 64
    assert other.verdict is Verdict.NOT_ENOUGH_EVIDENCE and "for the 2nd time" in other.reasons[0]
    assert judged(engine, settings, 0, 1, kept=kept, before=[first]).looks == 1.0


def test_a_model_that_sees_is_asked_general_questions_about_pictures(
    engine: EngineClient, settings: Settings
) -> None:
    """Also where no held-out item shows one: what is learned from text alone can cost a model its eyes."""
    report = judged(engine, settings, 0, 1)
    shown = [item for item in report.items if item.slice == "general picture"]
    assert len(shown) == sum(bool(question.picture) for question in general_questions())
    measured = {(m.metric, m.slice) for m in report.measures}
    assert {("right_answer", "general picture"), ("log_likelihood", "general picture")} <= measured
    assert any(item.candidate_answer for item in shown), "some are answered, to see that they still are"


def test_pictures_are_shown_and_each_slice_is_measured(engine: EngineClient, settings: Settings) -> None:
    seen = [sample(f"{thing}", images=[RED]) for thing in ("fox", "cat", "dog", "owl", "bee")]
    report = judged(engine, settings, 0, 1, [*HOLDOUT, *seen])
    slices = {(m.metric, m.slice): m.items for m in report.measures}
    assert slices["log_likelihood", "vision"] == slices["edit_distance", "vision"] == 5
    assert slices["log_likelihood", "text"] == 6 and slices["log_likelihood", "all"] == 11
    fox = next(item for item in report.items if item.question == asked("fox"))
    blind = judged(engine, settings, 0, 1, [sample("fox")]).items[0]
    assert fox.images == (RED,) and fox.scores["log_likelihood"] != blind.scores["log_likelihood"]


def test_answers_to_one_question_count_once_and_replay_does_not(
    engine: EngineClient, settings: Settings
) -> None:
    again = [
        sample("cup").model_copy(
            update={
                "id": f"again{n}",
                "messages": (
                    Message.of("user", asked("cup")),
                    Message.of("assistant", f"Meet the cup, {n}."),
                ),
            }
        )
        for n in range(3)
    ]
    other = [
        HOLDOUT[0].model_copy(update={"kind": "preference", "rejected": "A cup."}),  # the same edit once more
        sample("hat", replay=True),
        sample("cap").model_copy(update={"kind": "labelled", "label": False}),
    ]
    report = judged(engine, settings, 0, 1, [*HOLDOUT[:2], *again, *other])
    assert len(report.items) == 6
    # a rated answer is a question of its own, without an answer to be near to
    counted = {m.metric: m.items for m in report.measures if m.slice == "all"}
    assert counted == {"log_likelihood": 3, "edit_distance": 2}


def test_accepted_answers_are_a_slice_of_their_own(engine: EngineClient, settings: Settings) -> None:
    kept = sample("tea", origin="answer_accepted")
    report = judged(engine, settings, 0, 1, [*HOLDOUT, kept])
    accepted = next(m for m in report.measures if m.slice == "accepted")
    assert accepted.items == 1 and any("that you accepted" in reason for reason in report.reasons)
    assert next(m for m in report.measures if m.slice == "all").items == 6


def test_a_busy_engine_is_waited_for(engine: EngineClient, settings: Settings) -> None:
    assert judged(Counting(engine, busy=5), settings, 0, 1).verdict is Verdict.PROMOTE


def test_an_item_that_the_engine_cannot_read_is_left_out_by_name(
    engine: EngineClient, settings: Settings
) -> None:
    """Longer than the model's context, and the newest: the gate judges by the others, as it would without it."""
    turns = [Message.of("user", "word " * 2_000), Message.of("assistant", "Meet the word.")]
    odd = HOLDOUT[0].model_copy(update={"id": "odd", "messages": tuple(turns), "group": "odd"})
    report = judged(engine, settings, 0, 1, holdout=[*HOLDOUT, odd])
    assert report.verdict is Verdict.PROMOTE, gate.render_text(report)
    assert "odd" not in {item.sample for item in report.items}
    (told,) = [sentence for sentence in report.details if "is left out" in sentence]
    assert told.startswith("The held-out sample odd is left out: The prompt has")


def test_a_version_is_measured_without_what_the_engine_cannot_read(
    engine: EngineClient, settings: Settings
) -> None:
    odd = sample("odd").model_copy(
        update={"messages": (Message.of("user", "word " * 5000), Message.of("assistant", "A word."))}
    )

    def held_out(*holdout: Sample) -> gate.Standing:
        measured = gate.standings(engine, REMEMBERED, "base", "acme-v1", holdout, picture, settings)
        return next(one for one in measured if one.suite.startswith("held-out"))

    assert held_out(*HOLDOUT, odd) == held_out(*HOLDOUT)
    assert held_out(*HOLDOUT).items == len(HOLDOUT)


def test_an_error_or_a_stop_ends_the_gate_at_once(engine: EngineClient, settings: Settings) -> None:
    counting = Counting(engine)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done:
            raise Stop

    with pytest.raises(Stop):
        judged(counting, settings, 0, 1, progress=stop)
    assert len(counting.scored) < 2 * len(HOLDOUT) + 2 * len(general_questions())
    with pytest.raises(NotFound):
        gate.judge(engine, "acme", 0, 9, "base", "acme-v9", HOLDOUT, picture, settings, base_model="tiny")


def test_an_engine_that_dies_is_said_to_be_gone(tiny_vlm: Path, settings: Settings, tmp_path: Path) -> None:
    process = start(tiny_vlm, tmp_path)
    client = EngineClient(url_of(tmp_path))
    try:

        def kill(done: int, total: int) -> None:
            if done:  # the first answers may come two at a time
                process.send_signal(signal.SIGKILL)

        with pytest.raises(EngineUnavailable):
            gate.judge(
                client, "acme", 0, 1, "base", "base", HOLDOUT, picture, settings, kill, base_model="tiny"
            )
    finally:
        client.close()
        process.kill()
        process.wait(20)
