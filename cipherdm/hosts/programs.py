"""Check of an owner's programs: a party runs only those whose text shows that they open no secret.

SPU runs any textual MLIR that it can parse, and several of its operations open a secret to all parties: the calls named
reveal and dbg_print, a conversion from a secret type to a public one, a loop whose condition is secret, an update at a
secret place. Names can also be written with escapes. A list of what is forbidden could therefore never be complete.
Instead, a text is accepted only if all that it consists of is known: the operations in `OPERATIONS`, types written in one
way, and public types wherever SPU would open a secret. SPU itself checks that the types of operands and results fit (it
verifies the module, and `enable_type_checker` at run time).
"""

import re
from dataclasses import dataclass

from ..errors import CipherDMError
from ..kernels.ring_program import FULL, WalkPlan

OPERATIONS = frozenset(
    (
        "abs add and bitcast_convert broadcast broadcast_as ceil clamp concatenate constant convert "
        "convolution cosine divide dot dot_general dynamic_slice dynamic_update_slice equal exponential "
        "exponential_minus_one floor free greater greater_equal iota less less_equal log log_plus_one "
        "logistic maximum minimum multiply negate not not_equal or pad popcnt power reciprocal reduce "
        "reduce_window remainder reshape return reverse round_nearest_afz round_nearest_even rsqrt select "
        "shift_left shift_right_arithmetic shift_right_logical sign sine slice sqrt subtract tanh transpose "
        "while xor"
    ).split()
)
"""Operations of SPU's dialect pphlo that compute on shares and open nothing if their types are as checked here."""

_LONGEST = 1 << 24  # bytes of a text, many times those of a step of the models here

# Patterns give nothing back (possessive `*+`), and none can begin twice on the same characters: a text is read in a time
# that grows with its length. What they take out of the text, or look at, is written out whole. MLIR needs neither blanks
# nor line ends, so that `\S+` or `[^\n]*` could hide an operation.
_TENSOR = r"tensor<(?:\d++x)*+(?:[a-z]++\d++|!pphlo\.secret<[a-z]++\d++>)>"
_TYPE = rf"(?:!t\d++|{_TENSOR})"
_TYPES = rf"{_TYPE}(?:, {_TYPE})*+"
_VALUE = r"%\w++(?:#\d++)?+"
_ALIAS = re.compile(rf"^(!t\d++) = ({_TENSOR})$", re.MULTILINE)
_SIMPLE = r'[\w .=:,\[\]]|"[^"\\\n]*+"'
_HEADER = re.compile(rf"^module @\w++ attributes \{{(?:{_SIMPLE}|\{{(?:{_SIMPLE})*+\}})*+\}} \{{\n", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z_]\w*+(?:\.\w++)*+")
_MAIN = re.compile(r"func\.func @main\(([^()]*)\) -> (\([^()]*\)|[^\s(]+) \{")
_CONVERT = re.compile(rf"pphlo\.(?:convert|bitcast_convert) {_VALUE} : (?:\(({_TYPE})\) -> ({_TYPE})|{_TYPE})\n")
_GATHER = re.compile(
    rf"pphlo\.custom_call @spu\.gather\({_VALUE}, {_VALUE}\) \{{pphlo\.attributes = \{{[\w\s=<>:,]*+\}}\}}"
    rf" : \({_TYPE}, ({_TYPE})\) -> {_TYPE}\n"
)
_DYNAMIC = re.compile(
    rf"pphlo\.(dynamic_slice|dynamic_update_slice) {_VALUE}(?:, {_VALUE})*+(?: sizes = \[[\d, ]*+\])?+"
    rf" : \(({_TYPES})\) -> {_TYPE}\n"
)
_RETURN = rf"pphlo\.return {_VALUE}(?:, {_VALUE})*+ : (?P<returned>{_TYPES})(?=\s*+\}})"
_WHILE = rf"pphlo\.while\((?:{_VALUE} = {_VALUE}(?:, )?+)*+\) : (?P<carried>{_TYPES})\n\s*+cond \{{"
_REGION = re.compile(rf"{_WHILE}|{_RETURN}|(?P<do>\}} do \{{)|(?P<open>\{{)|\}}")


@dataclass(frozen=True)
class Type:
    """The shape of a value, and whether it is secret."""

    shape: tuple[int, ...]
    secret: bool


@dataclass(frozen=True)
class Signature:
    """Types of a program's arguments and results."""

    inputs: tuple[Type, ...]
    outputs: tuple[Type, ...]


def signature_of(name: str, text: bytes) -> Signature:
    """Return the types of a program that a party may run.

    Raises:
        CipherDMError: the program reveals something, or is not of the kind that `compile_program` makes.
    """
    return _Reader(name, text).signature()


def signature_of_walk(name: str, text: bytes) -> Signature:
    """Return the types of a program that a party may walk. No operation of a walk opens a secret.

    Raises:
        CipherDMError: it is none that `compile_walk` makes.
    """
    _check_length(name, text)
    try:
        plan = WalkPlan.from_json(text.decode(errors="replace"))
    except CipherDMError as error:
        raise _refused(name, str(error)) from None
    program = plan.program
    if any(plan.bits[number] != FULL for number in program.outputs):
        raise _refused(name, f"its results are not of {FULL} bits")  # hosts have no second runtime
    inputs = tuple(Type(program.shapes[number], number not in program.public) for number in program.inputs)
    return Signature(inputs, tuple(Type(program.shapes[number], secret=True) for number in program.outputs))


class _Reader:
    """Reader of one program's text. Each check refuses what it does not find written in the one way that it knows."""

    def __init__(self, name: str, text: bytes):
        self._name = name
        _check_length(name, text)
        if b"reveal" in text or b"dbg_print" in text:
            raise CipherDMError(f"the program {name!r} reveals a secret to the parties, which run no such programs.")
        try:
            code = text.decode("ascii")
        except UnicodeDecodeError:
            raise self._refused("it is not ASCII text") from None
        self._aliases = dict(_ALIAS.findall(code))
        code, headers = _HEADER.subn("", _ALIAS.sub("", code))
        self._gathers = _GATHER.findall(code)
        code = _GATHER.sub("\n", code)
        # With the one header gone, there is nothing that needs quotation marks, escapes, symbols or comments.
        unknown = re.search(r"[\"\\#$&';?`|~]|//|/\*", re.sub(_VALUE, "", code))
        if headers != 1 or unknown:
            raise self._refused(f"it contains {unknown[0]!r}" if unknown else "it is not one module")
        self._code = code

    def signature(self) -> Signature:
        self._check_words()
        self._check_types()
        self._check_conversions()
        self._check_loops()
        self._check_places()
        found = _MAIN.findall(self._code)
        if len(found) != 1 or self._code.count("func.func") != 1:
            raise self._refused("it has not exactly one function, main")
        arguments, results = found[0]
        inputs = [part.partition(":")[2].strip() for part in arguments.split(",") if part.strip()]
        outputs = [part.strip() for part in results.strip("()").split(",") if part.strip()]
        return Signature(tuple(map(self._type, inputs)), tuple(map(self._type, outputs)))

    def _check_words(self) -> None:
        for word in _WORD.findall(self._code):
            dialect, dot, operation = word.partition(".")
            if not dot:
                continue
            known = (dialect == "pphlo" and operation in OPERATIONS | {"secret"}) or word == "func.func"
            if not known:
                raise self._refused(f"it uses {word}")
        # Operations of MLIR's function dialect may be written without a prefix.
        if re.search(r"\bcall(_indirect)?\b", self._code):
            raise self._refused("it calls a function")

    def _check_types(self) -> None:
        rest = re.sub(_TENSOR, " ", self._code)
        for word in re.findall(r"![\w.]+", rest):
            if word not in self._aliases:
                raise self._refused(f"it uses the type {word}")

    def _check_conversions(self) -> None:
        found = _CONVERT.findall(self._code)
        if len(found) != len(re.findall(r"pphlo\.(?:bitcast_)?convert\b", self._code)):
            raise self._refused("a conversion is written in an unusual way")
        for before, after in found:
            if before and self._type(before).secret and not self._type(after).secret:
                raise CipherDMError(
                    f"the program {self._name!r} reveals a secret to the parties: it converts {before} to {after}."
                )

    def _check_loops(self) -> None:
        """Check that each loop's condition is public, and that its body returns the types that the loop carries."""
        loops = returns = 0
        opened: list[list] = [["}", None]]  # [what ends the region, types that it should return]; first, the module
        for found in _REGION.finditer(self._code):
            if found["carried"]:
                loops += 1
                opened.append(["do", found["carried"]])
            elif found["returned"]:
                returns += 1
                end, carried = opened[-1] if opened else ("}", None)
                if end == "do" and self._type(found["returned"]).secret:
                    raise self._refused("the condition of a loop is secret, and SPU would open it")
                if end == "}" and carried not in (None, found["returned"]):
                    raise self._refused(f"a loop carries {carried} and its body returns {found['returned']}")
            elif found["open"]:
                opened.append(["}", None])
            elif not opened or opened[-1][0] != ("do" if found["do"] else "}"):
                raise self._refused("its braces do not fit together")
            elif found["do"]:
                opened[-1][0] = "}"
            else:
                opened.pop()
        if (loops, returns) != (self._code.count("pphlo.while"), self._code.count("pphlo.return")):
            raise self._refused("a loop is written in an unusual way")

    def _check_places(self) -> None:
        found = _DYNAMIC.findall(self._code)
        if len(found) != len(re.findall(r"pphlo\.dynamic_", self._code)):
            raise self._refused("a dynamic slice is written in an unusual way")
        for operation, operands in found:
            types = [self._type(part.strip()) for part in operands.split(",")]
            if any(place.secret for place in types[1 if operation == "dynamic_slice" else 2 :]):
                raise self._refused(f"a {operation} is at a secret place, and SPU would open it")

        for places in self._gathers:
            if self._type(places).secret:
                raise self._refused("it gathers at secret places, which no party may learn")

    def _type(self, text: str) -> Type:
        written = self._aliases.get(text, text)
        if not re.fullmatch(_TENSOR, written):
            raise self._refused(f"it uses the type {text}")
        inside = written[len("tensor<") : -1]
        extents = re.match(r"(?:\d+x)*", inside)[0]
        return Type(tuple(int(extent) for extent in extents.split("x")[:-1]), "!pphlo.secret<" in inside)

    def _refused(self, why: str) -> CipherDMError:
        return _refused(self._name, why)


def _check_length(name: str, text: bytes) -> None:
    if len(text) > _LONGEST:
        raise _refused(name, f"it has more than {_LONGEST >> 20} MiB")


def _refused(name: str, why: str) -> CipherDMError:
    return CipherDMError(f"the program {name!r} is not one that this party runs: {why}.")
