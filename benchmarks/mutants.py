"""How many faults of a port do shadows find among noise, and how often do they accuse a port without any?

A simulated application answers in JSON and HTML with 50 noisy fields. Every port is the same application with noise of
its own; a mutant has one seeded fault besides. Nothing is told to the gateway: no `ignore` line, no list of fields.
"""

import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from multiprocessing import get_context
from statistics import median
from typing import Any

from gateway.compare import compare
from gateway.model import Backend, Observation
from gateway.shadow.noise import NoiseBook, Run

from .harness import Plan, save, table

SAMPLES = 200
MUTANTS = 200
FOUND = 0.99
FALSE_ALARMS = 0.01  # of ports without a fault: a single accusation in all of their samples is one

Answer = dict[str, Any]  # status, headers, body
Change = Callable[[Answer, random.Random], None]


# --- the application


class World:
    """What both sides share: the clock, and a counter in the database."""

    def __init__(self) -> None:
        self.now_s, self.calls = 1_750_000_000.0, 0


class Application:
    """Its answers depend on the request, on the world and on chance."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world, self.chance = world, chance

    def answer(self, request: int) -> Answer:
        self.world.calls += 1
        self.world.now_s += self.chance.expovariate(5)
        now = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(self.world.now_s))
        sid = f"{self.chance.getrandbits(96):024x}"
        headers = {
            "content-type": "application/json",
            "vary": "Cookie, Accept",
            "cache-control": "private, max-age=60",
            "etag": f'"{self.chance.getrandbits(64):016x}"',
            "last-modified": now,
            "content-language": self.chance.choice(["de", "en"]),
            "set-cookie": f"sid={sid}; Path=/; HttpOnly; Secure; SameSite=Lax; Max-Age=3600",
        }
        body = {**self._noise(), **self._data(request)}
        return {"status": 200, "headers": headers, "body": body, "page": request % 4 == 3}

    def _data(self, request: int) -> dict[str, Any]:
        """What the application is there for: the same for the same request."""
        seed = random.Random(request % 40)
        return {
            "id": request % 40,
            "title": f"Video {request % 40} Über alles",
            "price": f"{seed.randrange(100, 9999) / 100:.2f}",
            "amount": round(seed.uniform(0, 1000), 3),
            "total": seed.randrange(1000),
            "active": seed.random() < 0.5,
            "parent": None if seed.random() < 0.5 else seed.randrange(100),
            "note": "" if seed.random() < 0.5 else "Some Note",
            "published_at": f"2024-0{seed.randrange(1, 9)}-11T10:00:00Z",
            "artist": {
                "id": seed.randrange(100),
                "name": "Some Artist",
                "links": {"self": f"/artists/{seed.randrange(9)}"},
            },
            "tags": [f"tag{n}" for n in range(seed.randrange(3, 7))],
            "items": [{"id": n, "name": f"Item {n}", "count": seed.randrange(50)} for n in range(seed.randrange(3, 8))],
        }

    def _noise(self) -> dict[str, Any]:
        """46 fields; the etag, the date, the language and the cookie make them 50."""
        chance, now = self.chance, self.world.now_s
        iso = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        flips = {
            f"flip_{n}": chance.random() < share for n, share in enumerate([0.001, 0.005, 0.02, 0.05, 0.1, 0.3, 0.5])
        }
        rare = {
            f"rare_{n}": "odd" if chance.random() < share else "even"
            for n, share in enumerate([0.002, 0.01, 0.03, 0.2])
        }
        nulls = {f"null_{n}": None if chance.random() < share else "value" for n, share in enumerate([0.01, 0.1, 0.4])}
        gone = {f"gone_{n}": 1 for n, share in enumerate([0.02, 0.2, 0.5]) if chance.random() > share}
        some = [{"id": n, "label": f"L{n}", "weight": n * 7, "score": round(chance.random(), 3)} for n in range(5)]
        return {
            **flips,
            **rare,
            **nulls,
            **gone,
            "generated_at": f"{iso}Z",
            "generated_us": f"{iso}.{chance.randrange(10**6):06d}Z",
            "epoch_s": int(now),
            "epoch_ms": int(now * 1000),
            "epoch_f": round(now, 3),
            "expires": f"{iso}+00:00",
            "request_id": f"{chance.getrandbits(32):08x}-0000-4000-8000-{chance.getrandbits(48):012x}",
            "nonce": f"{chance.getrandbits(128):032x}",
            "trace": f"{chance.getrandbits(64):016X}",
            "csrf_token": "".join(chance.choices("abcdefghijkLMNOPQRSTUVWXYZ0123456789-_", k=43)),
            "duration_ms": round(chance.lognormvariate(1, 1), 3),
            "load": round(chance.random(), 2),
            "hits": self.world.calls,
            "online": chance.randrange(20, 400),
            "age_s": chance.randrange(60),
            "temperature": chance.randrange(-5, 5),
            "worker": chance.choice(["w1", "w2", "w3", "w4"]),
            "pid": chance.randrange(1000, 9999),
            "ad": chance.choice(["Buy now", "Sale!", "Half price today only", "Try me"]),
            "cache": chance.choice(["HIT", "MISS"]),
            "either": chance.choice([1, "1"]),
            "size": chance.choice([5, 5.5]),
            "shuffled": chance.sample(["a", "b", "c", "d", "e"], 5),
            "ids": chance.sample(range(8), 8),
            "recommended": chance.sample(some, 5),
            "rotating": chance.sample(["r1", "r2", "r3", "r4", "r5", "r6"], 3),
            "varying": ["v"] * chance.randrange(1, 5),
            "by_session": {f"{chance.getrandbits(64):016x}": {"n": 1}},
            "percent": f"{chance.random() * 100:.1f}%",
        }


def observed(backend: Backend, answer: Answer) -> Run:
    headers, body = dict(answer["headers"]), answer["body"]
    write: Callable[[Any], str] = answer.get("write", lambda value: json.dumps(value, separators=(",", ":")))
    raw = write(body).encode()
    if answer["page"]:
        headers["content-type"] = answer["headers"]["content-type"].replace("application/json", "text/html")
        raw = page(body).encode()
    return Run(Observation(backend, answer["status"], tuple(headers.items()), answer.get("cut", bytes)(raw)))


def page(body: Mapping[str, Any]) -> str:
    rows = "".join(f"<li>{escape(json.dumps(item))}</li>\n" for item in body.get("items") or [])
    fields = "".join(
        f"<dt>{name}</dt><dd>{escape(json.dumps(value))}</dd>" for name, value in body.items() if name in SHOWN
    )
    return (
        f'<!doctype html>\n<title>{escape(str(body.get("title")))}</title>\n<form method="post">\n'
        f'<input type="hidden" name="csrf" value="{body.get("csrf_token")}">\n</form>\n'
        f"<dl>{fields}</dl>\n<ul>\n{rows}</ul>\n"
        f"<footer>{body.get('generated_at')} in {body.get('duration_ms')} ms</footer>\n"
    )


SHOWN = ("title", "price", "amount", "total", "active", "parent", "note", "published_at", "artist", "tags")
STABLE = (*SHOWN, "id", "items")


# --- faults


@dataclass(frozen=True)
class Mutant:
    name: str
    change: Change
    share: float = 1.0  # of answers that have the fault
    by_request: bool = True  # whether it is the same requests that have it


def at(*path: str | int) -> Callable[[Callable[[Any], Any]], Change]:
    """A change of the value at a path; `...` deletes it."""

    def apply(value: Callable[[Any], Any]) -> Change:
        def change(answer: Answer, _: random.Random) -> None:
            holder = answer["body"]
            for step in path[:-1]:
                holder = holder[step]
            new = value(holder[path[-1]]) if not isinstance(holder, dict) or path[-1] in holder else ...
            if new is ...:
                holder.pop(path[-1], None)
            else:
                holder[path[-1]] = new

        return change

    return apply


def header(name: str, value: Callable[[str], str | None]) -> Change:
    def change(answer: Answer, _: random.Random) -> None:
        new = value(answer["headers"].pop(name))
        if new is not None:
            answer["headers"][name] = new

    return change


def put(name: str, value: Any) -> Change:
    return lambda answer, _: answer.__setitem__(name, value)


def renamed(old: str, new: str) -> Change:
    return lambda answer, _: answer["body"].__setitem__(new, answer["body"].pop(old))


def catalogue() -> list[tuple[str, Change]]:
    """All kinds of faults, each at several places."""
    faults: list[tuple[str, Change]] = []
    faults += [
        (f"missing {name}", at(name)(lambda _: ...))
        for name in (*STABLE, "generated_at", "nonce", "flip_0", "online", "shuffled")
    ]
    faults += [
        (f"null {name}", at(name)(lambda _: None))
        for name in (*SHOWN, "request_id", "flip_3", "cache", "hits", "recommended")
    ]
    faults += [(f"renamed {name}", renamed(name, f"{name}_")) for name in ("title", "total", "artist", "csrf_token")]
    faults += [("renamed to camelCase", renamed("published_at", "publishedAt"))]
    faults += [
        (f"extra {name}", lambda answer, _, name=name: answer["body"].__setitem__(name, 1)) for name in ("x", "debug")
    ]
    faults += [
        ("string to number price", at("price")(float)),
        ("number to string total", at("total")(str)),
        ("number to string id", at("id")(str)),
        ("float to string amount", at("amount")(str)),
        ("integer to float total", at("total")(float)),
        ("boolean to integer", at("active")(int)),
        ("boolean to string", at("active")(lambda v: str(v).lower())),
        ("null to empty", at("parent")(lambda v: "" if v is None else v)),
        ("empty to null", at("note")(lambda v: v or None)),
        ("object to list", at("artist")(lambda v: [v])),
        ("list to object", at("tags")(lambda v: dict(enumerate(v)))),
        ("list to string", at("tags")(",".join)),
        ("noisy number to string", at("online")(str)),
        ("noisy number to float", at("hits")(float)),
        ("noisy float to integer", at("load")(int)),
        ("noisy epoch to string", at("epoch_s")(str)),
        ("noisy flip to integer", at("flip_5")(int)),
        ("noisy string to list", at("ad")(lambda v: [v])),
        ("off by one total", at("total")(lambda v: v + 1)),
        ("off by one count", at("items", 1, "count")(lambda v: v + 1)),
        ("off by one id", at("id")(lambda v: v - 1)),
        ("off by one artist", at("artist", "id")(lambda v: v + 1)),
        ("negated total", at("total")(lambda v: -v - 1)),
        ("negated flag", at("active")(lambda v: not v)),
        ("negated rare flip", at("flip_1")(lambda v: not v)),
        ("negated flip", at("flip_4")(lambda v: not v)),
        ("always the rare value", at("rare_2")(lambda _: "odd")),
        ("always true", at("flip_5")(lambda _: True)),
        ("always null", at("null_1")(lambda _: None)),
        ("always there", lambda answer, _: answer["body"].__setitem__("gone_2", 1)),
        ("always another worker", at("worker")(lambda _: "w9")),
        ("always a miss", at("cache")(lambda _: "BYPASS")),
        ("rounded amount", at("amount")(lambda v: round(v, 1))),
        ("rounded to cents", at("amount")(lambda v: round(v, 2))),
        ("truncated amount", at("amount")(lambda v: int(v * 100) / 100)),
        ("price with one decimal", at("price")(lambda v: v[:-1])),
        ("price with a comma", at("price")(lambda v: v.replace(".", ","))),
        ("noisy duration rounded", at("duration_ms")(lambda v: round(v, 1))),
        ("noisy percent without sign", at("percent")(lambda v: v[:-1])),
        ("order of tags", at("tags")(lambda v: v[::-1])),
        ("order of items", at("items")(lambda v: v[::-1])),
        ("sorted otherwise", at("items")(lambda v: sorted(v, key=lambda i: (i["count"], i["id"])))),
        ("first and second swapped", at("tags")(lambda v: [v[1], v[0], *v[2:]])),
        ("list without its last", at("tags")(lambda v: v[:-1])),
        ("list without its first", at("items")(lambda v: v[1:])),
        ("list cut to three", at("items")(lambda v: v[:3])),
        ("list twice", at("tags")(lambda v: [*v, *v])),
        ("empty list", at("items")(lambda _: [])),
        ("random list without one", at("recommended")(lambda v: v[:4])),
        ("random list with one more", at("shuffled")(lambda v: [*v, "f"])),
        ("random list with another", at("shuffled")(lambda v: ["z", *v[1:]])),
        ("random list of strings", at("ids")(lambda v: [str(n) for n in v])),
        ("random list sorted", at("shuffled")(sorted)),
        ("random list sorted by id", at("recommended")(lambda v: sorted(v, key=lambda i: i["id"]))),
        ("field of a random list", at("recommended")(lambda v: [{**i, "weight": i["weight"] + 1} for i in v])),
        (
            "one field of a random list",
            at("recommended")(lambda v: [{**i, "label": "x" if i["id"] == 3 else i["label"]} for i in v]),
        ),
        ("missing in a random list", at("recommended")(lambda v: [{k: i[k] for k in i if k != "weight"} for i in v])),
        ("type in a random list", at("recommended")(lambda v: [{**i, "score": str(i["score"])} for i in v])),
        ("rotating list of another length", at("rotating")(lambda v: v[:2])),
        ("never-empty list empty", at("varying")(lambda _: [])),
        ("lower case title", at("title")(str.lower)),
        ("upper case artist", at("artist", "name")(str.upper)),
        ("space around title", at("title")(lambda v: f"{v} ")),
        ("cut title", at("title")(lambda v: v[:10])),
        ("escaped title", at("title")(lambda v: v.replace("Ü", "&Uuml;"))),
        ("mojibake", at("title")(lambda v: v.encode().decode("latin-1"))),
        ("ascii title", at("title")(lambda v: v.replace("Ü", "U"))),
        ("another link", at("artist", "links", "self")(lambda v: f"/api{v}")),
        ("zone lost", at("published_at")(lambda v: v[:-1])),
        ("zone spelled out", at("published_at")(lambda v: v[:-1] + "+00:00")),
        ("an hour off", at("published_at")(lambda v: v.replace("T10", "T11"))),
        ("date only", at("published_at")(lambda v: v[:10])),
        ("noisy time without zone", at("generated_at")(lambda v: v[:-1])),
        ("noisy time with fraction", at("generated_at")(lambda v: v[:-1] + ".000Z")),
        ("noisy time with a space", at("generated_us")(lambda v: v.replace("T", " "))),
        ("noisy date only", at("expires")(lambda v: v[:10])),
        ("noisy time an hour off", at("generated_at")(lambda v: v[:11] + f"{(int(v[11:13]) + 1) % 24:02d}" + v[13:])),
        ("noisy epoch in milliseconds", at("epoch_s")(lambda v: v * 1000)),
        ("noisy epoch in seconds", at("epoch_ms")(lambda v: v // 1000)),
        ("noisy epoch two hours off", at("epoch_f")(lambda v: v + 7200)),
        ("noisy epoch integer", at("epoch_f")(int)),
        ("noisy time as epoch", at("generated_at")(lambda _: 1_750_000_000)),
        ("noisy time evaluated once", at("generated_us")(lambda _: "2025-06-15T15:06:40.123456Z")),
        ("uuid evaluated once", at("request_id")(lambda _: "00000000-0000-4000-8000-000000000001")),
        ("nonce evaluated once", at("nonce")(lambda _: "0123456789abcdef" * 2)),
        ("uuid without dashes", at("request_id")(lambda v: v.replace("-", ""))),
        ("uuid in capitals", at("request_id")(str.upper)),
        ("shorter nonce", at("nonce")(lambda v: v[:16])),
        ("nonce in capitals", at("nonce")(str.upper)),
        ("trace in small letters", at("trace")(str.lower)),
        ("shorter token", at("csrf_token")(lambda v: v[:20])),
        ("empty token", at("csrf_token")(lambda _: "")),
        ("flat sessions", at("by_session")(lambda v: dict.fromkeys(v, 1))),
        ("no sessions", at("by_session")(lambda _: {})),
        ("negative online", at("online")(lambda v: -v)),
    ]
    faults += [(f"status {status}", put("status", status)) for status in (201, 204, 302, 404, 500)]
    faults += [
        (f"header {name} {'gone' if value(header_) is None else value(header_)}", header(name, value))
        for name, header_, values in (
            ("vary", "Cookie, Accept", (lambda _: None, lambda _: "Cookie")),
            ("cache-control", "", (lambda _: None, lambda _: "no-store", lambda _: "public, max-age=60")),
            ("etag", '"a"', (lambda _: None, lambda v: f"W/{v}", lambda v: v.strip('"'))),
            ("last-modified", "", (lambda _: None, lambda _: "Thu, 01 Jan 1970 00:00:00 GMT")),
            ("content-language", "", (lambda _: None, lambda _: "fr")),
            ("content-type", "application/json", (lambda v: f"{v}; charset=utf-8", lambda _: "text/plain")),
            (
                "set-cookie",
                "sid=1; Path=/; HttpOnly; Secure; SameSite=Lax; Max-Age=3600",
                (
                    lambda _: None,
                    lambda v: v.replace(" HttpOnly;", ""),
                    lambda v: v.replace(" Secure;", ""),
                    lambda v: v.replace("Lax", "None"),
                    lambda v: v.replace("Path=/", "Path=/api"),
                    lambda v: v.replace("3600", "60"),
                    lambda v: v.replace("sid=", "session="),
                    lambda v: v.replace("sid=", "sid=s:"),
                ),
            ),
        )
        for value in values
    ]
    faults += [
        ("spelled with spaces", put("write", json.dumps)),
        ("spelled without escapes", put("write", lambda v: json.dumps(v, separators=(",", ":"), ensure_ascii=False))),
        ("spelled with a newline", put("write", lambda v: json.dumps(v, separators=(",", ":")) + "\n")),
        ("body cut", put("cut", lambda raw: raw[:-20])),
        ("body empty", put("cut", lambda _: b"")),
        ("body with a mark", put("cut", lambda raw: b"\xef\xbb\xbf" + raw)),
    ]
    return faults


def mutants() -> list[Mutant]:
    """Each fault in all answers, and some again in a tenth of the requests, or of the answers, only."""
    everywhere = [Mutant(name, change) for name, change in catalogue()]
    stable = [mutant for mutant in everywhere if not NOISY & set(mutant.name.split())]
    again = random.Random("again").sample(stable, MUTANTS - len(everywhere))
    rare = [
        Mutant(f"{m.name}, in a tenth of the {'answers' if n % 2 else 'requests'}", m.change, 0.1, by_request=not n % 2)
        for n, m in enumerate(again)
    ]
    return everywhere + rare


NOISY = {
    "noisy",
    "random",
    "always",
    "rotating",
    "uuid",
    "nonce",
    "etag",
    "last-modified",
    "content-language",
    "set-cookie",
}


# --- trials


@dataclass
class Result:
    name: str
    found_after: int | None = None  # samples
    accused: Counter[str] | None = None  # what was reported although it is not the fault
    accusing: int = 0  # samples in which that happened
    samples: int = 0
    asked: int = 0  # further runs


def try_number(number: int, samples: int) -> Result:
    return try_port(mutants()[number], str(number), samples)


def try_port(mutant: Mutant | None, seed: str, samples: int) -> Result:
    """Shadow a port until its fault is found; one without a fault all the time."""
    world, book = World(), NoiseBook()
    control, port = (Application(world, random.Random(f"{seed} {side}")) for side in Backend)
    result = Result(mutant.name if mutant else "none", accused=Counter())
    expected = places_of(mutant) if mutant else set()

    def ask(backend: Backend, request: int) -> Run:
        answer = (control if backend is Backend.LEGACY else port).answer(request)
        if mutant and backend is Backend.FASTAPI and hits(mutant, request, port.chance):
            mutant.change(answer, port.chance)
        return observed(backend, answer)

    for request in range(samples):
        world.now_s += 0.5
        trial = book.trial("key", ask(Backend.LEGACY, request), ask(Backend.FASTAPI, request))
        while backend := trial.wants():
            trial.see(ask(backend, request))
            result.asked += 1
        reported = {top(difference.where) for difference in trial.verdict().differences}
        result.samples += 1
        result.accused.update(reported - expected)
        result.accusing += bool(reported - expected)
        if reported & expected:
            result.found_after = request + 1
            break
    return result


def hits(mutant: Mutant, request: int, chance: random.Random) -> bool:
    if mutant.share == 1:
        return True
    return request * 7 % 20 < 20 * mutant.share if mutant.by_request else chance.random() < mutant.share


def places_of(mutant: Mutant) -> set[str]:
    """Where the fault is, seen without any noise."""
    found = set()
    for request in range(40):
        answers = [Application(World(), random.Random(request)).answer(request) for _ in range(2)]
        mutant.change(answers[1], random.Random(0))
        verdict = compare(*(observed(Backend.LEGACY, answer).answer for answer in answers))
        found |= {top(difference.where) for difference in verdict.differences}
    return found


def top(where: str) -> str:
    """The field, header or cookie."""
    found = re.match(r"\$\.\w+|\$|[\w.-]+", where)
    return found[0].removesuffix(".value") if found else where


def main(plan: Plan) -> None:
    samples = SAMPLES if plan.keep else SAMPLES // 4
    faults = mutants() if plan.keep else mutants()[::10]
    began = time.perf_counter()
    with get_context("fork").Pool(os.cpu_count()) as pool:  # faults are closures: handed over by number
        found = pool.starmap(try_number, [(number, samples) for number in range(0, MUTANTS, MUTANTS // len(faults))], 4)
        clean = pool.starmap(try_port, [(None, f"without {seed}", samples) for seed in range(len(faults))], 4)
    took_s = time.perf_counter() - began
    report(found, clean, took_s)
    save("mutants", plan, summary(found, clean, took_s))


def summary(found: list[Result], clean: list[Result], took_s: float) -> dict[str, Any]:
    after = sorted(result.found_after for result in found if result.found_after)
    checked = sum(result.samples for result in clean)
    return {
        "mutants": len(found),
        "found": len(after),
        "missed": [result.name for result in found if not result.found_after],
        "samples until found": {"median": median(after), "p90": after[len(after) * 9 // 10], "most": after[-1]},
        "mutants with something else accused before": {r.name: r.accused for r in found if r.accused},
        "ports without a fault": len(clean),
        "accused ones of them": {f"{n}": result.accused for n, result in enumerate(clean) if result.accused},
        "samples of them": checked,
        "samples that accuse": sum(result.accusing for result in clean),
        "further runs per sample": round(sum(result.asked for result in clean) / checked, 3),
        "ms per sample": round(1000 * took_s / (checked + sum(result.samples for result in found)), 3),
        "each": {result.name: result.found_after for result in found},
    }


def report(found: list[Result], clean: list[Result], took_s: float) -> None:
    told = summary(found, clean, took_s)
    accused = len(told["accused ones of them"])
    rows = [
        [
            "mutants found",
            f"{told['found']} of {told['mutants']}",
            f"{told['found'] / told['mutants']:.1%}",
            f"{FOUND:.0%}",
        ],
        [
            "ports without a fault, accused",
            f"{accused} of {len(clean)}",
            f"{accused / len(clean):.1%}",
            f"{FALSE_ALARMS:.0%}",
        ],
        ["samples of them that accuse", f"{told['samples that accuse']} of {told['samples of them']}", "", ""],
        ["samples until found", json.dumps(told["samples until found"]), "", ""],
        ["further runs per sample", f"{told['further runs per sample']}", "", ""],
    ]
    table(f"50 noisy fields, {SAMPLES} samples", ["", "", "", "target"], rows)
    for name in told["missed"]:
        print(f"missed: {name}")
