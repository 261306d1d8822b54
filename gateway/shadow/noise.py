"""Which differences are noise? Learned from what the control does when it is asked twice.

**One answer of each side and a second one of the control.** If the candidate is as good as the control, nobody can
tell the first two apart. So where exactly one of the three differs from the other two, it must be the candidate no more
often than the first control: a fair coin, tossed at each place, however rarely the control differs from itself. That
the control is asked again only after a mismatch does no harm: candidate and first control play the same part in it.

**Evidence** against a coin is a bet on the candidate's side that is renewed with each toss (a test martingale): if the
coin is fair, it ever reaches LIMIT with a probability of at most 1/LIMIT, however often one looks (Ville's inequality;
Ramdas et al., "Game-theoretic statistics and safe anytime-valid inference", 2023). The bets lose where the candidate is
odd less than some 1.7 times as often as the control.

**At first sight**: a place that was never noise is judged at once. Both sides are asked until each has answered
`_RUNS` times, the control always alike and the candidate always otherwise; a flicker in both would hardly sort itself
like that.

**Shape**: what is noise in value is not noise in kind. A candidate whose timestamp has no zone, or whose random list
has a text instead of a number, differs in shape; for shapes there is a second coin. Two more look at values that are
always noise: of a candidate that lags (its value stays while the control's changes: a default evaluated only once) and
of one that is far away in time (a wrong time zone).
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from math import log
from typing import Any
from zlib import crc32

from gateway.compare import MAX_DIFFERENCES, ORDER, Place, is_covered, spell
from gateway.model import Backend, Difference, Verdict

from .places import Differing, Run, is_part, name
from .shapes import identity, moment, shape

__all__ = ["NoiseBook", "Run", "Trial"]

LIMIT = 10_000  # evidence above which a candidate is to blame
MAX_KEYS = 1_000
MAX_PLACES = 300  # of one key
MAX_LIKE = 3  # differences of one kind of place in one verdict

_BETS = (0.75, 0.95)  # probabilities that the odd one is the candidate
_RUNS = 4  # of each side until a place that was never noise is judged ...
_RUNS_YOUNG = 7  # ... and while a route is new, because more is unknown
_YOUNG = 30  # samples
_MAX_CLASSES = 8  # of values at one place that are counted one by one
_KNOWN = 40  # times that a place was noise, after which the control is asked only now and then
_REFRESH = 10  # samples
_WATCH = 50  # samples during which both sides are asked more often, after the candidate alone has flickered ...
_RUNS_WATCHED = 3  # ... so many times
_FAR_S = 60.0

VALUE, SHAPE, LAG, FAR = "value", "shape", "lag", "far"


@dataclass(slots=True)
class _Coin:
    """How often who was the odd one at one place."""

    candidate: int = 0
    control: int = 0
    neither: int = 0  # all three differ
    certain: int = 0  # of `candidate`: whenever both were asked again
    flickered: int = 0  # of `candidate`: but not when asked again

    @property
    def is_clean(self) -> bool:
        """Whether neither side has ever differed from itself here."""
        return not (self.control or self.neither or self.flickered)

    @property
    def convicts(self) -> bool:
        return self.weighs(LIMIT)

    def weighs(self, limit: int) -> bool:
        """Whether the evidence against the candidate has reached the limit."""
        logs = (self.candidate * log(2 * bet) + self.control * log(2 - 2 * bet) for bet in _BETS)
        return max(logs) >= log(limit * len(_BETS))

    def toss(self, outcomes: Collection[str]) -> None:
        for outcome in outcomes:
            setattr(self, outcome, getattr(self, outcome) + 1)

    def dump(self) -> list[int]:
        return [self.candidate, self.control, self.neither, self.certain, self.flickered]


@dataclass(slots=True)
class _Learned:
    """About one place."""

    coins: dict[str, _Coin] = field(default_factory=dict)
    classes: dict[str, _Coin] = field(default_factory=dict)  # by shape or value: who has it while the other has not
    last: tuple[int, int] | None = None  # hashes of the values of control and candidate when they last differed

    def __getitem__(self, level: str) -> _Coin:
        return self.coins.setdefault(level, _Coin())

    def of_class(self, name: str) -> _Coin:
        """The coin of one value or shape; where there is no more room, a new one."""
        if name not in self.classes and len(self.classes) < _MAX_CLASSES:
            self.classes[name] = _Coin()
        return self.classes.get(name) or _Coin()

    def dump(self) -> dict[str, list[int]]:
        """Without the classes: they are hashes of values, and a short secret could be guessed from one."""
        return {level: coin.dump() for level, coin in self.coins.items()}

    @classmethod
    def load(cls, dumped: Mapping[str, Any]) -> "_Learned":
        return cls({str(level): _Coin(*map(int, counts)) for level, counts in dumped.items()})


@dataclass(slots=True)
class _Route:
    samples: int = 0
    places: dict[str, _Learned] = field(default_factory=dict)
    unordered: set[str] = field(default_factory=set)  # lists in random order, objects with random keys
    watched_until: int = 0  # number of samples

    def __getitem__(self, place: Place) -> _Learned:
        """What is known of the place; where there is no more room, nothing and not for long."""
        learned = self.places.get(name(place)) or _Learned()
        if len(self.places) < MAX_PLACES:
            self.places.setdefault(name(place), learned)
        return learned

    def __contains__(self, place: object) -> bool:
        """Whether this is a list in random order, or an object with random keys."""
        return bool(self.unordered) and isinstance(place, tuple) and name(place) in self.unordered

    @property
    def is_watched(self) -> bool:
        return self.samples < self.watched_until


class NoiseBook:
    """What has been learned about each route. For one thread; no clock, no chance."""

    def __init__(self) -> None:
        self._routes: dict[str, _Route] = {}

    def trial(
        self, key: str, control: Run, candidate: Run, ignore: Collection[str] = (), *, again: bool = True
    ) -> "Trial":
        """Begin to judge one pair of answers. Without `again` the control cannot be asked twice (it was a write)."""
        route = self._routes.get(key) or _Route()
        if len(self._routes) < MAX_KEYS:
            self._routes.setdefault(key, route)
        return Trial(route, control, candidate, ignore, again=again)

    def dump(self, key: str) -> dict[str, Any]:
        """What was learned about `key`, for JSON; of a coin [candidate, control, neither, certain, flickered]."""
        route = self._routes.get(key) or _Route()
        places = {place: learned.dump() for place, learned in route.places.items() if learned.coins}
        return {"samples": route.samples, "unordered": sorted(route.unordered), "places": places}

    def load(self, key: str, dumped: Mapping[str, Any]) -> None:
        """Take up what an earlier process learned; nothing if it cannot be understood."""
        route = _restored(dumped)
        if route and len(self._routes) < MAX_KEYS:
            self._routes[key] = route


def noisy(dumped: Mapping[str, Any]) -> list[str]:
    """For people: the places where the control differs from itself, of what `NoiseBook.dump` has said."""
    route = _restored(dumped) or _Route()
    places = [name for name, of in route.places.items() if not all(coin.is_clean for coin in of.coins.values())]
    return sorted(places) + [f"the order of {place}" for place in sorted(route.unordered)]


def _restored(dumped: Mapping[str, Any]) -> _Route | None:
    try:
        places = {str(place): _Learned.load(of) for place, of in list(dumped["places"].items())[:MAX_PLACES]}
        return _Route(int(dumped["samples"]), places, set(map(str, dumped["unordered"])))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


class Trial:
    """One pair of answers, and as many more runs of either side as it takes to judge them.

        trial = book.trial(key, control, candidate, ignore)
        while backend := trial.wants():
            trial.see(Run(await ask(backend)))
        verdict = trial.verdict()

    Asking less than it wants is allowed; then what was not explained counts as a difference.
    """

    def __init__(self, route: _Route, control: Run, candidate: Run, ignore: Collection[str], *, again: bool) -> None:
        self._route, self._ignore, self._again = route, ignore, again
        self._controls, self._candidates = [control], [candidate]
        self._most = _RUNS_YOUNG if route.samples < _YOUNG else _RUNS
        self._lagging: set[Place] = set()  # places where the candidate's value has stayed
        self._compare_all()

    def wants(self) -> Backend | None:
        """Who is to be asked once more, at most 2 * 7 - 2 times in all; None: nobody, the verdict is ready."""
        controls, candidates = len(self._controls), len(self._candidates)
        watched = self._again and self._route.is_watched
        if not (self._cases or watched):
            return None
        twice = watched or not all(map(self._is_known_noise, self._cases))
        if controls == 1 and self._again:
            return self._control if twice else None
        if candidates == 1 and twice and not self._again:
            return self._candidate
        if watched and min(controls, candidates) < _RUNS_WATCHED:
            return self._candidate if candidates < controls else self._control
        if not self._again or not any(map(self._is_open, self._cases)):
            return None
        return self._candidate if candidates <= controls and candidates < self._most else self._control

    def see(self, run: Run) -> None:
        """One more answer, of the side that was wanted."""
        other = self._differing(run)
        if run.answer.backend is self._candidate:
            self._candidates.append(run)
            self._theirs.append(other)
            return
        self._controls.append(run)
        self._others.append(other)
        unordered = other.unordered()
        if not unordered <= self._route.unordered and len(self._route.unordered) < MAX_PLACES:
            self._route.unordered |= unordered
            self._compare_all()

    def verdict(self) -> Verdict:
        """The differences that count and, ignored, those that are noise. To be called once, for it learns."""
        unexplained = self.wants() is not None
        self._learn()
        guilty = [case.place for case in self._cases if self._is_guilty(case, unexplained=unexplained)]
        excused = self._first.pairs.keys() - set(guilty)
        self._route.samples += 1
        told = self._tell(guilty, whole=True), self._tell([p for p in self._first.pairs if p in excused], whole=False)
        return Verdict(*(tuple(islice(differences, MAX_DIFFERENCES)) for differences in told))

    # --- what the runs show ---

    @property
    def _control(self) -> Backend:
        return self._controls[0].answer.backend

    @property
    def _candidate(self) -> Backend:
        return self._candidates[0].answer.backend

    @property
    def _is_complete(self) -> bool:
        return min(len(self._controls), len(self._candidates)) >= self._most

    def _differing(self, run: Run) -> Differing:
        return Differing(self._controls[0], run, self._route)

    def _compare_all(self) -> None:
        """Compare all runs with the first one of the control."""
        self._others = [self._differing(run) for run in self._controls[1:]]
        self._theirs = [self._differing(run) for run in self._candidates]
        self._first = self._theirs[0]
        self._cases = [
            _Case(place, self._route[place], *pair)
            for place, pair in self._first.pairs.items()
            if not is_covered(place, self._ignore)
        ]

    def _odd_one(self, case: "_Case") -> str:
        """Who was the odd one of the first three; empty: the control was not asked again."""
        if not self._others:
            return ""
        again, theirs = case.seen_in(self._others[0]), case.seen_in(self._first)
        return "candidate" if again == case.first else "control" if again == theirs else "neither"

    def _is_separated(self, case: "_Case") -> bool:
        """Whether all runs of the control agree and none of the candidate agrees with them."""
        return all(case.seen_in(run) == case.first for run in self._others) and all(
            case.seen_in(run) != case.first for run in self._theirs
        )

    def _varies(self, case: "_Case") -> bool:
        """Whether the candidate does not agree with itself, for want of a second run of the control."""
        return len(self._theirs) > 1 and case.seen_in(self._theirs[0]) != case.seen_in(self._theirs[1])

    def _is_open(self, case: "_Case") -> bool:
        """Whether the place cannot be judged without asking again."""
        coin = case.coin
        return coin.is_clean and not (self._is_complete or coin.certain or coin.convicts) and self._is_separated(case)

    def _is_known_noise(self, case: "_Case") -> bool:
        known = case.learned[VALUE].neither >= _KNOWN and self._route.samples % _REFRESH > 0
        return known and case.level is VALUE and not _is_far(case.ours, case.theirs, None)

    # --- what is learned from them ---

    def _learn(self) -> None:
        """What happens at several places of one name happens once; later runs count one by one."""
        tosses: dict[int, tuple[_Coin, set[str]]] = {}
        later = list(self._second_tosses())
        for coin, outcome in self._tosses():
            tosses.setdefault(id(coin), (coin, set()))[1].add(outcome)
        for coin, outcomes in tosses.values():
            coin.toss(outcomes)
        for coin, outcome in later:
            coin.toss([outcome])

    def _tosses(self) -> Iterator[tuple[_Coin, str]]:
        """Coins, and who was the odd one."""
        for case in self._cases:
            odd = self._odd_one(case)
            if odd:
                yield case.coin, odd
            elif self._varies(case):
                yield case.coin, "neither"
            if case.has_classes:
                yield case.learned.of_class(case.class_of(case.theirs)), "candidate"
                yield case.learned.of_class(case.class_of(case.ours)), "control"
            if odd == "candidate":
                yield from self._certain_tosses(case)
            elif odd == "neither" and case.level is VALUE:
                yield from self._noise_tosses(case)

    def _certain_tosses(self, case: "_Case") -> Iterator[tuple[_Coin, str]]:
        coin = case.coin
        if self._is_separated(case):
            if coin.is_clean and self._is_complete:
                yield coin, "certain"
        elif not (coin.control or coin.neither or coin.convicts):
            yield coin, "flickered"
            self._route.watched_until = self._route.samples + _WATCH

    def _second_tosses(self) -> Iterator[tuple[_Coin, str]]:
        """Pairs of later runs, where the first ones agree: both were asked again for no other reason than to watch."""
        if not (self._route.is_watched and self._again):
            return
        for one, other in zip(self._others, self._theirs[1:], strict=False):
            for place, pair in {**one.pairs, **other.pairs}.items():
                if place not in self._first and not is_part(place):
                    case = _Case(place, self._route[place], *pair)
                    again, theirs = case.seen_in(one), case.seen_in(other)
                    if again != theirs and case.first in (again, theirs):
                        yield case.coin, "candidate" if again == case.first else "control"

    def _noise_tosses(self, case: "_Case") -> Iterator[tuple[_Coin, str]]:
        """Does the candidate's value stay when that of the control changes? Is it far away?"""
        learned, again = case.learned, self._others[0].pairs.get(case.place, (None, None))[1]
        if "*" not in case.name and not is_part(case.place):
            last, now = learned.last, (_hash(again), _hash(case.theirs))  # asked one after the other
            learned.last = None if last else now  # two by two: what is used twice would count twice
            if last and (last[0] == now[0]) != (last[1] == now[1]):
                yield learned[LAG], "control" if last[0] == now[0] else "candidate"
            self._lagging |= {case.place} if last and last[1] == now[1] else set()
        far = (_is_far(case.ours, case.theirs, again), _is_far(case.theirs, case.ours, again))
        if again is not None and far[0] != far[1]:
            yield learned[FAR], "control" if far[0] else "candidate"

    # --- and what follows ---

    def _is_guilty(self, case: "_Case", *, unexplained: bool) -> bool:
        coin, odd = case.coin, self._odd_one(case)
        certain = coin.is_clean and (coin.certain > 0 or (unexplained and self._is_open(case)))
        if odd == "candidate" and (coin.convicts or certain):
            return True
        if not odd and not self._varies(case) and (case.level is SHAPE or coin.is_clean):
            return case.level is SHAPE or not _is_opaque(case.place)
        if odd != "control" and case.is_too_frequent:
            return True
        return odd in ("", "neither") and case.level is VALUE and self._is_strange(case)

    def _is_strange(self, case: "_Case") -> bool:
        """Whether a value that is noise lags or is far away, as it so often does."""
        if case.place in self._lagging and case.learned[LAG].convicts:
            return True
        again = self._others[0].pairs.get(case.place, (None, None))[1] if self._others else None
        return case.learned[FAR].convicts and _is_far(case.theirs, case.ours, again)

    def _tell(self, places: Collection[Place], *, whole: bool) -> Iterator[Difference]:
        """A few of each kind; `whole`: what differs in a text is shown where it stands."""
        told: dict[str, int] = {}
        parts = [place for place in places if is_part(place)]
        if parts and whole:
            yield self._tell_text(parts)
        for place in places:
            like = name(place)
            told[like] = told.get(like, 0) + 1
            if told[like] <= MAX_LIKE and not (whole and is_part(place)):
                yield Difference("body" if is_part(place) else spell(place), *self._first.pairs[place])

    def _tell_text(self, parts: Collection[Place]) -> Difference:
        """The control's body, and the same with only these parts of the candidate: what is noise does not show."""
        text = self._controls[0].answer.body.decode()
        mixed, at = "", 0
        for place in sorted(parts, key=lambda part: int(part[2])):
            mixed += text[at : int(place[2])] + str(self._first.pairs[place][1])
            at = int(place[3])
        return Difference("body", text.encode(), (mixed + text[at:]).encode())


class _Case:
    """One place where the first runs differ."""

    __slots__ = ("first", "learned", "level", "name", "ours", "place", "theirs")

    def __init__(self, place: Place, learned: _Learned, ours: object, theirs: object) -> None:
        self.place, self.learned, self.ours, self.theirs = place, learned, ours, theirs
        self.name = name(place)
        self.level = VALUE if shape(place, ours) == shape(place, theirs) else SHAPE
        self.first = self._look_at(ours)

    @property
    def coin(self) -> _Coin:
        return self.learned[self.level]

    @property
    def has_classes(self) -> bool:
        """Whether the place takes some values again and again."""
        coin = self.coin
        return self.level is SHAPE or coin.candidate + coin.control >= coin.neither

    def class_of(self, value: object) -> str:
        return shape(self.place, value) if self.level is SHAPE else str(_hash(value))

    @property
    def is_too_frequent(self) -> bool:
        """Whether the candidate has this value, or one like it, more often than the control.

        Not where the control itself is the odd one as a rule: it answers first, and may have filled a cache.
        """
        coin = self.learned.classes.get(self.class_of(self.theirs))
        rule = self.coin.control <= 5 * self.coin.candidate
        return self.has_classes and rule and coin is not None and coin.weighs(LIMIT * _MAX_CLASSES)

    def seen_in(self, run: Differing) -> object:
        """What the place is in that run; equal to nothing if that cannot be told."""
        if self.place in run.pairs:
            return self._look_at(run.pairs[self.place][1])
        if self.place[-1] == ORDER and run.is_partial(self.place[:-1]):
            return object()
        if self.place not in run or (self.level is SHAPE and run.is_below(self.place)):
            return self.first
        return object()

    def _look_at(self, value: object) -> object:
        return shape(self.place, value) if self.level is SHAPE else identity(value)


def _is_opaque(place: Place) -> bool:
    """The value of a cookie: signed or random as a rule, with the time in it, and changing once in a second."""
    return len(place) == 3 and place[0] == "cookie" and place[2] == "value"


def _is_far(value: object, one: object, other: object | None) -> bool:
    """Whether a point in time is far from both others, if there are two, and they are not so far from each other."""
    at, first, second = moment(value), moment(one), moment(one if other is None else other)
    if at is None or first is None or second is None:
        return False
    return min(abs(at - first), abs(at - second)) > max(_FAR_S, 10 * abs(first - second))


def _hash(value: object) -> int:
    return crc32(repr(identity(value)).encode())
