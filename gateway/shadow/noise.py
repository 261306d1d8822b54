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

from gateway.compare import MAX_DIFFERENCES, Place, is_covered, spell
from gateway.model import Backend, Difference, Verdict

from .places import Differing, Run, is_part, name
from .shapes import identity, moment, shape

__all__ = ["NoiseBook", "Run", "Trial"]

LIMIT = 1_000  # evidence above which a candidate is to blame
MAX_KEYS = 1_000
MAX_PLACES = 300  # of one key
MAX_LIKE = 3  # differences of one kind of place in one verdict

_BETS = (0.75, 0.95)  # probabilities that the odd one is the candidate
_RUNS = 3  # of each side until a place that was never noise is judged ...
_RUNS_YOUNG = 5  # ... and while a route is new, because more is unknown
_YOUNG = 20  # samples
_KNOWN = 20  # times that a place was noise, after which the control is asked only now and then
_REFRESH = 10  # samples
_WATCH = 100  # samples during which both sides are asked twice, after the candidate alone has flickered
_FAR_S = 60.0

VALUE, SHAPE, LAG, FAR = "value", "shape", "lag", "far"


@dataclass(slots=True)
class _Coin:
    """How often who was the odd one at one place."""

    candidate: int = 0
    control: int = 0
    neither: int = 0  # all three differ
    certain: int = 0  # of `candidate`: each time that both were asked again

    @property
    def is_clean(self) -> bool:
        """Whether the control has never differed from itself here."""
        return not (self.control or self.neither)

    @property
    def convicts(self) -> bool:
        logs = (self.candidate * log(2 * bet) + self.control * log(2 - 2 * bet) for bet in _BETS)
        return max(logs) >= log(LIMIT * len(_BETS))

    def toss(self, outcomes: Collection[str]) -> None:
        for outcome in outcomes:
            setattr(self, outcome, getattr(self, outcome) + 1)

    def dump(self) -> list[int]:
        return [self.candidate, self.control, self.neither, self.certain]


@dataclass(slots=True)
class _Learned:
    """About one place."""

    coins: dict[str, _Coin] = field(default_factory=dict)
    last: tuple[int, int] | None = None  # hashes of the values of control and candidate when they last differed

    def __getitem__(self, level: str) -> _Coin:
        return self.coins.setdefault(level, _Coin())


@dataclass(slots=True)
class _Route:
    samples: int = 0
    places: dict[str, _Learned] = field(default_factory=dict)
    unordered: set[str] = field(default_factory=set)  # lists in random order
    watched_until: int = 0  # number of samples

    def __getitem__(self, place: Place) -> _Learned:
        """What is known of the place; where there is no more room, nothing and not for long."""
        learned = self.places.get(name(place)) or _Learned()
        if len(self.places) < MAX_PLACES:
            self.places.setdefault(name(place), learned)
        return learned

    def __contains__(self, place: object) -> bool:
        """Whether this is a list in random order."""
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
        """What was learned about `key`, for JSON: by place and coin [candidate, control, neither, certain]."""
        route = self._routes.get(key) or _Route()
        places = {
            place: {level: coin.dump() for level, coin in learned.coins.items()}
            for place, learned in route.places.items()
        }
        return {"samples": route.samples, "unordered": sorted(route.unordered), "places": places}

    def load(self, key: str, dumped: Mapping[str, Any]) -> None:
        """Take up what an earlier process learned; nothing if it cannot be understood."""
        try:
            places = {
                str(place): _Learned({level: _Coin(*map(int, coins[level])) for level in coins})
                for place, coins in list(dumped["places"].items())[:MAX_PLACES]
            }
            route = _Route(int(dumped["samples"]), places, set(map(str, dumped["unordered"])))
        except (KeyError, TypeError, ValueError, AttributeError):
            return
        if len(self._routes) < MAX_KEYS:
            self._routes[key] = route


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
        self._lagging: set[Place] = set()  # places where the candidate's value has stayed
        self._most = _RUNS_YOUNG if route.samples < _YOUNG else _RUNS
        self._look()

    def wants(self) -> Backend | None:
        """Who is to be asked once more, at most 2 * 5 - 2 times in all; None: nobody, the verdict is ready."""
        controls, candidates = len(self._controls), len(self._candidates)
        watched = self._again and self._route.is_watched
        if not (self._places or watched):
            return None
        twice = watched or not all(map(self._is_known_noise, self._places))
        if controls == 1 and self._again:
            return self._control if twice else None
        if candidates == 1 and (watched or (twice and not self._again)):
            return self._candidate
        if not self._again or not any(map(self._is_open, self._places)):
            return None
        return self._candidate if candidates <= controls and candidates < self._most else self._control

    def see(self, run: Run) -> None:
        """One more answer, of the side that was wanted."""
        (self._controls if run.answer.backend is self._control else self._candidates).append(run)
        self._look()

    def verdict(self) -> Verdict:
        """The differences that count and, ignored, those that are noise. To be called once, for it learns."""
        unexplained = self.wants() is not None
        self._learn()
        guilty = [place for place in self._places if self._is_guilty(place, unexplained=unexplained)]
        self._route.samples += 1
        excused = self._first.pairs.keys() - set(guilty)
        told = self._tell(guilty, whole=True), self._tell([p for p in self._first.pairs if p in excused], whole=False)
        return Verdict(*(tuple(islice(differences, MAX_DIFFERENCES)) for differences in told))

    # --- what the runs show ---

    @property
    def _control(self) -> Backend:
        return self._controls[0].answer.backend

    @property
    def _candidate(self) -> Backend:
        return self._candidates[0].answer.backend

    def _look(self) -> None:
        """Compare all runs with the first one of the control."""
        first, *others = self._controls
        self._others = [Differing(first, run, self._route) for run in others]
        reordered = {name(place) for other in self._others for place in other.reordered()}
        if not reordered <= self._route.unordered and len(self._route.unordered) < MAX_PLACES:
            self._route.unordered |= reordered
            self._others = [Differing(first, run, self._route) for run in others]
        self._theirs = [Differing(first, run, self._route) for run in self._candidates]
        self._first = self._theirs[0]
        self._places = [place for place in self._first.pairs if not is_covered(place, self._ignore)]

    def _level(self, place: Place) -> str:
        ours, theirs = self._first.pairs[place]
        return VALUE if shape(place, ours) == shape(place, theirs) else SHAPE

    def _seen(self, place: Place, level: str) -> tuple[object, list[object], list[object]]:
        """What the place is in the first run, in the other ones of the control, and in those of the candidate."""
        ours = self._first.pairs[place][0]
        return (
            _look_at(place, level, ours),
            [_seen_in(other, place, level, ours) for other in self._others],
            [_seen_in(other, place, level, ours) for other in self._theirs],
        )

    def _odd_one(self, place: Place) -> str:
        """Who was the odd one of the first three; empty: the control was not asked again."""
        if not self._others:
            return ""
        ours, (again, *_), (theirs, *_) = self._seen(place, self._level(place))
        return "candidate" if again == ours else "control" if again == theirs else "neither"

    def _is_separated(self, place: Place) -> bool:
        """Whether all runs of the control agree and none of the candidate agrees with them."""
        ours, again, theirs = self._seen(place, self._level(place))
        return all(one == ours for one in again) and ours not in theirs

    def _varies(self, place: Place) -> bool:
        """Whether the candidate does not agree with itself, for want of a second run of the control."""
        _, _, theirs = self._seen(place, self._level(place))
        return len(theirs) > 1 and theirs[0] != theirs[1]

    def _is_open(self, place: Place) -> bool:
        """Whether the place cannot be judged without asking again."""
        coin = self._route[place][self._level(place)]
        return coin.is_clean and not (self._is_complete or coin.certain or coin.convicts) and self._is_separated(place)

    @property
    def _is_complete(self) -> bool:
        return min(len(self._controls), len(self._candidates)) >= self._most

    def _is_known_noise(self, place: Place) -> bool:
        coin = self._route[place][VALUE]
        known = coin.neither >= _KNOWN and self._route.samples % _REFRESH > 0
        return known and self._level(place) is VALUE and not _is_far(*self._first.pairs[place], None)

    # --- what is learned from them ---

    def _learn(self) -> None:
        tosses: dict[tuple[int, str], tuple[_Coin, set[str]]] = {}
        for place, level, outcome in [*self._tosses(), *self._second_tosses()]:
            coin = self._route[place][level]
            tosses.setdefault((id(coin), level), (coin, set()))[1].add(outcome)
        for coin, outcomes in tosses.values():
            coin.toss(outcomes)

    def _tosses(self) -> Iterator[tuple[Place, str, str]]:
        """Place, coin and who was the odd one."""
        for place in self._places:
            level, odd = self._level(place), self._odd_one(place)
            if odd:
                yield place, level, odd
            elif self._varies(place):
                yield place, level, "neither"
            if odd == "candidate":
                yield from self._certain_tosses(place, level)
            elif level is VALUE:
                yield from self._noise_tosses(place)

    def _certain_tosses(self, place: Place, level: str) -> Iterator[tuple[Place, str, str]]:
        coin = self._route[place][level]
        if not self._is_separated(place):
            if not coin.convicts and coin.candidate >= 2 * coin.control:
                self._route.watched_until = self._route.samples + _WATCH
        elif coin.is_clean and self._is_complete:
            yield place, level, "certain"

    def _second_tosses(self) -> Iterator[tuple[Place, str, str]]:
        """At places where the first runs agree, if both sides were asked again for no other reason than to watch."""
        if not (self._route.is_watched and self._others and len(self._theirs) > 1):
            return
        one, other = self._others[0], self._theirs[1]
        for place in {**one.pairs, **other.pairs}:
            if place in self._first or is_part(place):
                continue
            first = (one.pairs.get(place) or other.pairs[place])[0]
            ours, again, theirs = (
                _look_at(place, VALUE, first),
                *(_seen_in(s, place, VALUE, first) for s in (one, other)),
            )
            if again != theirs and ours in (again, theirs):
                yield place, VALUE, "candidate" if again == ours else "control"

    def _noise_tosses(self, place: Place) -> Iterator[tuple[Place, str, str]]:
        """Does the candidate's value stay when that of the control changes? Is it far away?"""
        learned, pair = self._route[place], self._first.pairs[place]
        if "*" not in name(place) and not is_part(place):
            last, now = learned.last, (_hash(pair[0]), _hash(pair[1]))
            learned.last = now
            if last and (last[0] == now[0]) != (last[1] == now[1]):
                yield place, LAG, "control" if last[0] == now[0] else "candidate"
                self._lagging |= {place} if last[1] == now[1] else set()
        if self._others and place in self._others[0].pairs:
            ours, theirs, again = *pair, self._others[0].pairs[place][1]
            far = (_is_far(ours, theirs, again), _is_far(theirs, ours, again))
            if far[0] != far[1]:
                yield place, FAR, "control" if far[0] else "candidate"

    # --- and what follows ---

    def _is_guilty(self, place: Place, *, unexplained: bool) -> bool:
        level, odd = self._level(place), self._odd_one(place)
        learned = self._route[place]
        coin = learned[level]
        if odd == "candidate":
            return coin.convicts or (coin.is_clean and (coin.certain > 0 or (unexplained and self._is_open(place))))
        if not odd and not self._varies(place) and (level is SHAPE or coin.is_clean):
            return True
        return level is VALUE and self._is_strange(place, learned)

    def _is_strange(self, place: Place, learned: _Learned) -> bool:
        """Whether a value that is noise lags or is far away, as it so often does."""
        ours, theirs = self._first.pairs[place]
        again = self._others[0].pairs.get(place, (None, None))[1] if self._others else None
        return (place in self._lagging and learned[LAG].convicts) or (
            learned[FAR].convicts and _is_far(theirs, ours, again)
        )

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


def _look_at(place: Place, level: str, value: object) -> object:
    return shape(place, value) if level is SHAPE else identity(value)


def _seen_in(run: Differing, place: Place, level: str, ours: object) -> object:
    """What the place is in that run, if it is `ours` in the first one; equal to nothing if that cannot be told."""
    if place in run.pairs:
        return _look_at(place, level, run.pairs[place][1])
    if place not in run or (level is SHAPE and run.is_below(place)):
        return _look_at(place, level, ours)
    return object()


def _is_far(value: object, one: object, other: object | None) -> bool:
    """Whether a point in time is far from both others, if there are two, and they are not so far from each other."""
    at, first, second = moment(value), moment(one), moment(one if other is None else other)
    if at is None or first is None or second is None:
        return False
    return min(abs(at - first), abs(at - second)) > max(_FAR_S, 10 * abs(first - second))


def _hash(value: object) -> int:
    return crc32(repr(identity(value)).encode())
