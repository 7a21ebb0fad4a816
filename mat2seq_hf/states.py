"""What can follow each state of the grammar, and where a token leads."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from .choices import (
    LENGTHS,
    PIECES,
    SIGNED_IDS,
    Key,
    angle_key,
    coordinate_key,
    lattice_parameter,
    length_key,
    number_tokens,
    remembered,
    with_head,
)
from .coordinates import Need, Point, free_position, has_room, next_values, orbit_points
from .elements import ELEMENTS
from .feasibility import next_letters, trailing_sites
from .grid import COORDINATE_GRID, angle_word, coordinate_word, length_word, parse_coordinate
from .operations import crystal_system, points_per_primitive
from .prompts import Plan
from .state_kinds import (
    Coordinate,
    Crystal,
    Done,
    Fields,
    Forced,
    Formula,
    Lattice,
    Number,
    PartialNumber,
    Place,
    Site,
    State,
    Writing,
)
from .vocabulary import (
    CRYSTAL_SYSTEMS,
    END_OF_FIELDS,
    EOS,
    FIELDS,
    MAX_ATOMS,
    NUMERIC_FIELDS,
    TOKEN_IDS,
    TOKENS,
    UNKNOWN_VALUE,
    group_word,
    tokenize,
)
from .wyckoff import wyckoff_positions

__all__ = ["initial_state", "next_key", "next_state", "number_key"]

_ELEMENT_IDS = tuple(TOKEN_IDS[symbol] for symbol in ELEMENTS)
_RANKS = {token: rank for rank, token in enumerate(_ELEMENT_IDS)}
_COUNT_IDS = {count: TOKEN_IDS[f"##{count}"] for count in range(1, 100)}
_COUNTS = {token: count for count, token in _COUNT_IDS.items()}
_DIGIT_IDS = tuple(TOKEN_IDS[f"##{digit}"] for digit in range(10))  # last digit of a count above 99
_GROUP_IDS = {number: TOKEN_IDS[group_word(number)] for number in range(1, 231)}
_GROUPS = {token: number for number, token in _GROUP_IDS.items()}
_FIELD_IDS = tuple(TOKEN_IDS[f"{name}="] for name in FIELDS)
_END_OF_FIELDS, _UNKNOWN = TOKEN_IDS[END_OF_FIELDS], TOKEN_IDS[UNKNOWN_VALUE]
_ANY_LENGTH = (2, 0)  # pieces of a length that no limit is near to


@lru_cache(maxsize=COORDINATE_GRID)
def _coordinate_tokens(value: int) -> tuple[int, ...]:
    return tuple(tokenize(coordinate_word(value)))


@lru_cache(maxsize=4096)
def _fixed_point(number: int, letter: int) -> tuple[int, ...]:
    """Tokens of the coordinates of a position that has no free one."""
    shifts = wyckoff_positions(number)[letter].shift24
    return tuple(token for shift in shifts for token in _coordinate_tokens(shift * COORDINATE_GRID // 24))


def _forced(tokens: Iterable[int], then: State) -> State:
    """``then`` after ``tokens``, joined with the forced run that it may begin with."""
    tokens = tuple(tokens)
    if isinstance(then, Forced):
        return Forced(tokens + then.tokens, then.then)
    return Forced(tokens, then) if tokens else then


@lru_cache(maxsize=1 << 14)
def _formula_choices(state: Formula) -> tuple[int, ...]:
    plan, ranks, counts, head = state
    if len(ranks) == len(counts):
        elements = tuple(_ELEMENT_IDS[rank] for rank in plan.next_ranks(ranks, counts))
        return elements + tuple(_GROUP_IDS[number] for number in (plan.open_groups(counts) if counts else ()))
    allowed = plan.next_counts(ranks[-1], counts)
    if not head:
        return tuple({_COUNT_IDS[count if count < 100 else count // 10]: None for count in allowed})
    longer = tuple(_DIGIT_IDS[count % 10] for count in allowed if count >= 100 and count // 10 == head)
    return longer + (_formula_choices(Formula(plan, ranks, (*counts, head))) if head in allowed else ())


def _after_formula(state: Formula, token: int) -> State:
    plan, ranks, counts, head = state
    if head:
        if token in _DIGIT_IDS:
            return Formula(plan, ranks, (*counts, head * 10 + _DIGIT_IDS.index(token)))
        counts = (*counts, head)
    if token in _RANKS:
        return Formula(plan, (*ranks, _RANKS[token]), counts)
    if token in _GROUPS:
        return _next_parameter(Crystal(_GROUPS[token], ranks, counts), ())
    count = _COUNTS[token]
    longer = any(larger >= 100 and larger // 10 == count for larger in plan.next_counts(ranks[-1], counts))
    return Formula(plan, ranks, counts, count) if longer else Formula(plan, ranks, (*counts, count))


def _field_choices(state: Fields) -> tuple[int, ...]:
    """Tokens that can follow in free prefix fields; the first field may be missing altogether."""
    written = state.written
    if state.field < 0:
        return (*_FIELD_IDS, *_formula_choices(Formula(state.plan)))
    name = FIELDS[state.field]
    more = (*_FIELD_IDS[state.field + 1 :], _END_OF_FIELDS)
    if name in NUMERIC_FIELDS:
        if not written:
            return (_UNKNOWN, *SIGNED_IDS)
        return more if written[-1] not in SIGNED_IDS else PIECES
    if name == "elements":
        if not written:
            return (_UNKNOWN, *_ELEMENT_IDS)
        return more if written[-1] == _UNKNOWN else (*_ELEMENT_IDS[_RANKS[written[-1]] + 1 :], *more)
    values: dict[str, Iterable[int]] = {
        "space_group": _GROUP_IDS.values(),
        "crystal_system": (TOKEN_IDS[system] for system in CRYSTAL_SYSTEMS),
        "n_atoms": _COUNT_IDS.values(),
    }
    if name == "n_atoms" and len(written) == 1 and 10 <= _COUNTS.get(written[0], 0) <= MAX_ATOMS // 10:
        return (*_DIGIT_IDS, *more)
    return more if written else (_UNKNOWN, *values[name])


def _after_field(state: Fields, token: int) -> State:
    if token == _END_OF_FIELDS:
        return Formula(state.plan)
    if token in _FIELD_IDS:
        return Fields(state.plan, _FIELD_IDS.index(token), ())
    if state.field < 0:
        return _after_formula(Formula(state.plan), token)
    return Fields(state.plan, state.field, (*state.written, token))


def _next_parameter(crystal: Crystal, values: tuple[int, ...]) -> State:
    """State in which the next free lattice parameter, or the first site, is to come."""
    system = crystal_system(crystal.number)
    tokens: list[int] = []
    while len(values) < 6:
        parameter = lattice_parameter(system, values)
        if isinstance(parameter, tuple):
            return _forced(tokens, Writing(Lattice(system, remembered(system, values), *parameter, ()), crystal))
        tokens += tokenize(length_word(parameter) if len(values) < 3 else angle_word(parameter))
        values = (*values, parameter)
    first = Place(crystal, 0, crystal.counts[0], -1, 0, ())
    return _forced([*tokens, _ELEMENT_IDS[crystal.ranks[0]]], first)


def _lattice_key(state: Lattice) -> Key:
    whole = state.pieces[0] if state.pieces else None
    if len(state.values) >= 3:
        return angle_key(state.low, state.high, whole)
    return length_key(state.low, state.high, whole, state.pieces[1] if len(state.pieces) > 1 else None)


def _ties(state: Lattice) -> bool:
    """Whether a later parameter depends on this length."""
    return state.system == "triclinic" or (not state.values and state.system not in ("monoclinic", "orthorhombic"))


def _after_lattice(state: Lattice, crystal: Crystal, token: int) -> State:
    word = TOKENS[token]
    is_angle = len(state.values) >= 3
    if word in ("90", "120"):
        return _next_parameter(crystal, (*state.values, int(word) * 100))
    pieces = (*state.pieces, int(word.strip("#.")))
    if len(pieces) < (2 if is_angle else 3):
        if not is_angle and (state.low, state.high) == LENGTHS and not _ties(state):
            pieces = _ANY_LENGTH[: len(pieces)]
        return Writing(state._replace(pieces=pieces), crystal)
    value = 0
    for piece in pieces:
        value = value * 100 + piece
    return _next_parameter(crystal, (*state.values, value))


@lru_cache(maxsize=4096)
def _letters(number: int) -> dict[int, int]:
    """Letter index of each Wyckoff token of a space group."""
    return {TOKEN_IDS[p.name]: index for index, p in enumerate(wyckoff_positions(number))}


def _place_choices(state: Place) -> tuple[int, ...]:
    number, later = state.crystal.number, state.crystal.counts[state.element + 1 :]
    letters = next_letters(number, state.left, max(state.letter, 0), state.used, later)
    positions = wyckoff_positions(number)
    if state.letter in letters and not has_room(number, state.letter, _occupy(state, state.letter)[1]):
        letters = tuple(letter for letter in letters if letter != state.letter)
    return tuple(TOKEN_IDS[positions[letter].name] for letter in letters)


def _occupy(state: Place, letter: int) -> tuple[Place, Need]:
    """Book-keeping once a site is on this letter, and what its coordinates must respect."""
    number, counts = state.crystal.number, state.crystal.counts
    position = wyckoff_positions(number)[letter]
    left = state.left - position.multiplicity // points_per_primitive(number)
    is_free = position.freedom > 0
    used = state.used if is_free else state.used | 1 << letter
    place = Place(state.crystal, state.element, left, letter, used, state.placed)
    same = [point for at, point in state.placed if at == letter]
    need = Need(
        after=same[-1] if letter == state.letter and is_free else None,
        trailing=trailing_sites(number, left, letter, used, counts[state.element + 1 :]) if is_free else 0,
        taken=frozenset().union(*(orbit_points(number, letter, point) for point in same)),
        is_first=not state.placed and not state.used,
    )
    return place, need


def _next_coordinate(place: Place, need: Need, known: Point) -> State:
    """State after the entries of a point that are known: its next free coordinate, or the next site."""
    position = wyckoff_positions(place.crystal.number)[place.letter]
    if position.freedom == 0:
        return _forced(_fixed_point(place.crystal.number, place.letter), _next_site(place))
    free = free_position(place.crystal.number, place.letter)
    start = free.axes[len(known) - 1] + 1 if known else 0
    stop = free.axes[len(known)] if len(known) < len(free.axes) else 3
    tokens = (token for axis in range(start, stop) for token in _coordinate_tokens(free.coordinate(axis, known)))
    if stop == 3:
        crystal, element, left, letter, used, placed = place
        after = _next_site(Place(crystal, element, left, letter, used, (*placed, (letter, known))))
    else:
        values = next_values(place.crystal.number, place.letter, need, known)
        after = Writing(Coordinate(values, None), Site(place, need, known))
    return _forced(tokens, after)


def _next_site(place: Place) -> State:
    crystal = place.crystal
    if place.left:
        return Forced((_ELEMENT_IDS[crystal.ranks[place.element]],), place)
    element = place.element + 1
    if element == len(crystal.ranks):
        return Forced((TOKEN_IDS[EOS],), Done())
    after = place._replace(element=element, left=crystal.counts[element], letter=-1)
    return Forced((_ELEMENT_IDS[crystal.ranks[element]],), after)


def _after_coordinate(state: Coordinate, site: Site, token: int) -> State:
    word = TOKENS[token]
    if state.head is not None:
        value = parse_coordinate(f"0.{state.head:02d}{word[2:]}")
    elif word.startswith("0."):
        head = int(word[2:])
        return Writing(Coordinate(with_head(state.values, head), head), site)
    else:
        value = parse_coordinate(word)
    return _next_coordinate(site.place, site.need, (*site.known, value))


def initial_state(plan: Plan) -> State:
    """State after the begin token."""
    if plan.prompt.open_prefix:
        return Fields(plan, -1, ())
    return _after_prefix(plan, plan.prefix)


def _after_prefix(plan: Plan, prefix: tuple[int | tuple[int, int], ...]) -> State:
    """What follows when these parts of the prefix fields are still to come."""
    tokens: list[int] = []
    for place, part in enumerate(prefix):
        if isinstance(part, tuple):
            return _forced(tokens, Number(plan, *part, None, prefix[place + 1 :]))
        tokens.append(part)
    return _forced(tokens, Formula(plan))


def number_key(number: PartialNumber) -> Key:
    """Key of the set of tokens with which a number can go on."""
    if isinstance(number, Lattice):
        return _lattice_key(number)
    return coordinate_key(number.values, number.head)


def _after_number(state: Writing, token: int) -> State:
    number, context = state
    if isinstance(number, Lattice):
        assert isinstance(context, Crystal)
        return _after_lattice(number, context, token)
    assert isinstance(context, Site)
    return _after_coordinate(number, context, token)


def next_key(state: State) -> Key:
    """Key of the set of tokens that can follow (see :func:`~mat2seq_hf.choices.token_set`)."""
    match state:
        case Forced():
            return state.tokens[0]
        case Writing():
            return number_key(state.number)
        case Place():
            return _place_choices(state)
        case Number():
            return number_tokens(state.low, state.high, state.whole)
        case Formula():
            return _formula_choices(state)
        case Fields():
            return _field_choices(state)
        case Done():
            return ()


def next_state(state: State, token: int) -> State:
    """State after a token of the set that :func:`next_key` names; it is not checked."""
    match state:
        case Forced():
            return Forced(state.tokens[1:], state.then) if len(state.tokens) > 1 else state.then
        case Writing():
            return _after_number(state, token)
        case Place():
            return _next_coordinate(*_occupy(state, _letters(state.crystal.number)[token]), ())
        case Number():
            if state.whole is None:
                return state._replace(whole=token)
            return _after_prefix(state.plan, state.rest)
        case Formula():
            return _after_formula(state, token)
        case Fields():
            return _after_field(state, token)
    raise AssertionError("nothing follows the end")
