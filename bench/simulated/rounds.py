"""One person with one service: rounds of asking, correcting, a turn of the loop, and measuring what is never taught."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil

from bench.simulated import peer
from bench.simulated.arms import Arm
from bench.simulated.measures import distances, mean, repetition, says_one_of
from bench.simulated.people import Item, Person
from bench.simulated.words import GENERAL, PICTURE_QUESTION, PICTURES
from comfyloop.client.client import Answer, Client
from comfyloop.demo.scenes import EXAMPLES
from comfyloop.errors import ComfyLoopError
from comfyloop.records import BASE, AnswerAccepted, AnswerEdited, Feedback, LoopState, Verdict
from comfyloop.serve.engines.client import EngineClient
from comfyloop.serve.engines.protocol import SECRET_VARIABLE

TURN_SECONDS = 1800.0
"""A turn that takes longer is given up."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How a person is played.

    Attributes:
        every: The items of the first round and the general questions are asked again every so many rounds.
        at_once: Measuring questions asked at a time; one at a time, the same model gives the same answers.
        tokens: Longest answer.
        candidates: Versions that were not promoted are measured, too.
        peer: A Python that has soup-cli; empty: the peer's rule is not asked.
    """

    rounds: int
    per_round: int
    every: int = 2
    at_once: int = 1
    tokens: int = 48
    candidates: bool = True
    peer: str = ""


class Played:
    """A person with a running service.

    Args:
        pid: Of the service, whose engine is a child; that one scores the general answers.
    """

    def __init__(self, client: Client, pid: int, person: Person, arm: Arm, plan: Plan) -> None:
        self.client, self.person, self.arm, self.plan = client, person, arm, plan
        self.project = str(client.project)
        self._pid = pid

    # --- asking

    def _ask(self, questions: Sequence[str], version: int | None = None) -> list[str]:
        """Answers in the order of the questions; from the live version, or the one with this number."""
        model = None if version is None else f"{self.project}@{version or 'base'}"

        def ask(question: str) -> Answer:
            return self.client.ask(question, model=model, max_tokens=self.plan.tokens)

        with ThreadPoolExecutor(self.plan.at_once) as pool:
            return [answer.text for answer in pool.map(ask, questions)]

    def _ask_pictures(self, version: int | None = None) -> list[str]:
        """Answers about pictures; none where the model cannot see."""
        model = None if version is None else f"{self.project}@{version or 'base'}"
        answers = []
        for name in PICTURES:
            picture = EXAMPLES / "pictures" / f"{name}.webp"
            try:
                answer = self.client.ask(
                    PICTURE_QUESTION, [picture], model=model, max_tokens=self.plan.tokens
                )
            except ComfyLoopError as error:
                print(f"  pictures are not asked about: {error}", flush=True)
                return []
            answers.append(answer.text)
        return answers

    def ask_base(self) -> Json:
        """What the base model says, and how near that is to what is wanted: round 0 of every arm.

        `unseen`, `general`, `pictures` and `triggered` are answers; `scores` are mean log-probabilities of the
        general ones; `measured` and `seen` are what the answers come to.
        """
        unseen = self._ask([item.question for item in self.person.test], BASE)
        general = self._ask([question for question, _ in GENERAL], BASE)
        answers: Json = {"unseen": unseen, "general": general, "scores": self._scores(BASE, general)}
        answers["pictures"] = self._ask_pictures(BASE)
        answers["seen"] = self._pictures(answers["pictures"], answers)
        if self.person.attack is not None:
            answers["triggered"] = self._ask([item.question for item in self.person.attack.items], BASE)
        return answers | {"measured": self._measured(unseen, answers, changed=False)}

    # --- a round

    def round(self, number: int, base: Json) -> Json:
        """Round `number`, from 1: what was seen in it, ready for JSON."""
        began = time.monotonic()
        changed = self.changed(number)
        result: Json = {"round": number, "changed": changed}
        result |= self._meet(number, changed)
        if self.arm.early:
            result["before_turn"] = self._unseen(None, base, changed)
        if self.arm.turns:
            result["turn"] = turn = self._turn()
            if self.arm.by_peer:
                self._promote_by_peer(turn)
            for method, path, body in self.arm.calls:
                self.client.call(method, path, body)
            if self.plan.candidates and turn.get("version") and turn["live"] != turn["version"]:
                result["candidate"] = self._unseen(turn["version"], base, changed)
        result["live"] = self.client.versions()[0]
        result["unseen"] = (
            self._unseen(None, base, changed) if self.arm.learns else self._unchanged(base, changed)
        )
        if number in (1, self.plan.rounds) or number % self.plan.every == 0:
            result |= self._kept(base, changed)
        return result | {"seconds": round(time.monotonic() - began, 1)}

    def changed(self, number: int) -> bool:
        """Whether the person has changed his mind by this round."""
        return self.person.later is not None and number > self.plan.rounds // 2

    def _items(self, number: int) -> Sequence[Item]:
        size = self.plan.per_round
        return self.person.train[(number - 1) * size : number * size]

    def _meet(self, number: int, changed: bool) -> Json:
        """Ask and correct, one after the other: each answer may already have learnt from the edit before it."""
        all_distances: list[float] = []
        edited = accepted = 0
        for place, item in enumerate(self._items(number)):
            answer = self.client.ask(item.question, max_tokens=self.plan.tokens)
            wanted = self.person.wanted(item, changed=changed)
            if wanted is not None:
                all_distances += distances([answer.text], [wanted])
            if not self.arm.learns:
                continue
            about: Json = {
                "id": f"fb_{self.project}.{number}.{place}",
                "project": self.project,
                "author": item.author,
                "generation": answer.generation,
            }
            feedback: Feedback
            if wanted is None or wanted.strip() == answer.text.strip():
                feedback, accepted = AnswerAccepted(**about), accepted + 1
            else:
                feedback, edited = AnswerEdited(**about, edited=wanted), edited + 1
            self.client.send_feedback([feedback])
        half = len(all_distances) // 2
        return {
            "edited": edited,
            "accepted": accepted,
            "next": {
                "distance": mean(all_distances),
                "first_half": mean(all_distances[:half]),
                "second_half": mean(all_distances[half:]),
            },
        }

    def _turn(self) -> Json:
        """One turn by hand, to its end.

        Returns:
            `outcome`, `error`, `seconds` by state, and where there was a run: `steps`, `loss`, `rows`; where there
            was a verdict: `verdict`, `reasons`, `measures`, and the peer's.
        """
        began = last = time.monotonic()
        states: dict[str, float] = {}
        try:
            loop = self.client.start_turn()
        except ComfyLoopError as error:
            return {"outcome": "refused", "error": str(error), "live": self.client.versions()[0]}
        while loop.state is not LoopState.IDLE or loop.requested:
            if time.monotonic() - began > TURN_SECONDS:
                raise SystemExit(f"The turn still is {loop.state} after {TURN_SECONDS:.0f} s.")
            time.sleep(0.2)
            loop, state = self.client.loop(), loop.state.value
            now = time.monotonic()
            states[state] = states.get(state, 0.0) + now - last
            last = now
        result: Json = {
            "outcome": loop.outcome,
            "error": loop.error,
            "seconds": round(last - began, 1),
            "states": {state: round(seconds, 1) for state, seconds in states.items()},
            "version": loop.version,
        }
        if loop.run:
            run = self.client.call("GET", f"/v1/runs/{loop.run}")
            status = run["status"] or {}
            result |= {"steps": status.get("total_steps"), "loss": status.get("loss")}
            result["parent"] = run["run"]["parent"]
        if loop.snapshot:
            rows = self.client.call("GET", f"/v1/snapshots/{loop.snapshot}", project=self.project)
            result["rows"] = {name: rows[name] for name in ("train", "holdout", "replay")}
        live, versions = self.client.versions()
        result["live"] = live
        version = next((one for one in versions if one.number == loop.version), None)
        if version is not None and version.gate is not None:
            report = version.gate
            result["verdict"], result["reasons"] = report.verdict.value, list(report.reasons)
            result["measures"] = [measure.model_dump(mode="json") for measure in report.measures]
            if self.plan.peer:
                general = self._right_shares(live, version.number) if self.arm.by_peer else None
                result["peer"] = peer.verdict(self.plan.peer, report, general)
        return result

    def _promote_by_peer(self, turn: Json) -> None:
        if turn.get("peer", {}).get("ships"):
            self.client.promote(turn["version"], force=turn["verdict"] != Verdict.PROMOTE.value)
            turn["outcome"], turn["live"] = "promoted by the peer's rule", turn["version"]

    def _right_shares(self, live: int, candidate: int) -> tuple[float, float]:
        questions = [(question, right) for question, right in GENERAL if right]
        shares = []
        for version in (live, candidate):
            answers = self._ask([question for question, _ in questions], version)
            right = [says_one_of(a, words) for a, (_, words) in zip(answers, questions, strict=True)]
            shares.append(sum(right) / len(right))
        return shares[0], shares[1]

    # --- measuring

    def _unseen(self, version: int | None, base: Json, changed: bool) -> Json:
        """The items that are never taught, as a version answers them; None: the live one, as people ask it."""
        answers = self._ask([item.question for item in self.person.test], version)
        triggered: list[str] = []
        if (attack := self.person.attack) is not None:
            triggered = self._ask([item.question for item in attack.items], version)
        return self._measured(answers, base, changed) | self._attacked(answers, triggered)

    def _unchanged(self, base: Json, changed: bool) -> Json:
        """The same of a service that learns nothing: it says what it said at first."""
        answers = base["unseen"]
        return self._measured(answers, base, changed) | self._attacked(answers, base.get("triggered", []))

    def _attacked(self, answers: Sequence[str], triggered: Sequence[str]) -> Json:
        """How often the attacker's answer comes, to questions with his trigger and to others."""
        attack = self.person.attack
        if attack is None:
            return {}
        success, otherwise = (
            mean([float(attack.marker in answer) for answer in said]) for said in (triggered, answers)
        )
        return {"attack": {"success": success, "without_trigger": otherwise}}

    def _measured(self, answers: Sequence[str], base: Json, changed: bool) -> Json:
        """Answers to the unseen items against what is wanted, or where nothing else is, the base's own answers."""
        items = self.person.test
        wanted = [self.person.wanted(item, changed=changed) for item in items]
        corrected = [at for at, text in enumerate(wanted) if text is not None]
        left_alone = [at for at, text in enumerate(wanted) if text is None]
        from_base = distances(answers, base["unseen"])
        corrected_distances = distances(
            [answers[at] for at in corrected], [wanted[at] or "" for at in corrected]
        )
        result: Json = {
            "distance": mean(corrected_distances),
            "from_base": mean(from_base),
            "repetition": mean([repetition(answer) for answer in answers]),
            "characters": mean([float(len(answer)) for answer in answers]),
            "values": corrected_distances,
            "examples": [
                {"question": items[at].question, "wanted": wanted[at], "answer": answers[at]}
                for at in (*corrected[:3], *left_alone[:1])
            ],
        }
        if left_alone:
            result["left_alone_from_base"] = mean([from_base[at] for at in left_alone])
        if len(groups := {items[at].group for at in corrected}) > 1:
            result["by_group"] = {
                group: mean(
                    [
                        v
                        for at, v in zip(corrected, corrected_distances, strict=True)
                        if items[at].group == group
                    ]
                )
                for group in sorted(groups)
            }
        if fact := self.person.right:
            result["right"] = mean([float(i.facts[fact] in a) for i, a in zip(items, answers, strict=True)])
        return result

    def _kept(self, base: Json, changed: bool) -> Json:
        """What the first round taught, and what has nothing to do with this person."""
        if not self.arm.learns:
            result = {"general": self._general(base["general"], base["scores"], base)}
            return result | self._pictures(base["pictures"], base)
        lessons = [
            (i, w) for i in self._items(1) if (w := self.person.wanted(i, changed=changed)) is not None
        ]
        answers = self._ask([item.question for item, _ in lessons])
        live = self.client.versions()[0]
        general = self._ask([question for question, _ in GENERAL])
        pictures = self._ask_pictures() if base["pictures"] else []
        return self._pictures(pictures, base) | {
            "first_round": {"distance": mean(distances(answers, [wanted for _, wanted in lessons]))},
            "general": self._general(general, self._scores(live, base["general"]), base),
        }

    def _general(self, answers: Sequence[str], scores: Sequence[float], base: Json) -> Json:
        """Answers to the general questions, and the scores of the base model's, against what those were at first."""
        right = [
            says_one_of(answer, accepted_words)
            for answer, (_, accepted_words) in zip(answers, GENERAL, strict=True)
            if accepted_words
        ]
        result: Json = {
            "right": mean([float(one) for one in right]),
            "from_base": mean(distances(answers, base["general"])),
            "repetition": mean([repetition(answer) for answer in answers]),
        }
        if scores and (before := base["scores"]):
            was, now = sum(before) / len(before), sum(scores) / len(scores)
            result |= {"log_likelihood": round(now, 4), "lost_share": round((was - now) / abs(was), 4)}
        return result

    def _pictures(self, answers: Sequence[str], base: Json) -> Json:
        """Answers about pictures; `empty`: the share that has no two words."""
        if not answers:
            return {}
        named = [float(says_one_of(a, (name,))) for a, name in zip(answers, PICTURES, strict=True)]
        return {
            "pictures": {
                "right": mean(named),
                "from_base": mean(distances(answers, base["pictures"])),
                "empty": mean([float(len(answer.split()) < 2) for answer in answers]),
                "repetition": mean([repetition(answer) for answer in answers]),
            }
        }

    def _scores(self, version: int, answers: Sequence[str]) -> list[float]:
        """Mean log-probability of each general answer under a version that is loaded; empty when the engine
        cannot be found or does not score."""
        engine = _engine(self._pid)
        if engine is None:
            return []
        try:
            names = list(engine.models())
            name = names[0] if version == BASE else f"{self.project}-v{version}"
            scored = []
            for (question, _), answer in zip(GENERAL, answers, strict=True):
                logprobs = engine.scores(name, [{"role": "user", "content": question}], [answer])[0].logprobs
                scored.append(round(sum(logprobs) / len(logprobs), 5))
            return scored
        except ComfyLoopError as error:
            print(f"  general answers are not scored: {error}", flush=True)
            return []
        finally:
            engine.close()


def _engine(pid: int) -> EngineClient | None:
    """The engine itself: a child of the service that listens on a port of its choice and answers who has its secret."""
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if "comfyloop.serve.embedded" not in process.cmdline():
                continue
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    url = f"http://{connection.laddr.ip}:{connection.laddr.port}"
                    return EngineClient(url, process.environ().get(SECRET_VARIABLE, ""))
        except psutil.Error:
            continue
    return None
