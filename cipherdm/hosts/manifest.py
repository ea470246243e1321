"""Manifests of registered models: names, shapes, programs and calls, and the checks that a party makes of them."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from spu import libspu

from ..engine import EngineConfig, Spec
from ..engine import party_pb2 as engine_pb
from ..errors import CipherDMError
from . import host_pb2 as pb
from .programs import Signature, Type, signature_of, signature_of_walk
from .refusals import Forbidden

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REGISTRATION = re.compile(r"[0-9a-f]{32}")

_TYPES = {
    "float32": libspu.DataType.DT_F32,
    "float64": libspu.DataType.DT_F64,
    "int32": libspu.DataType.DT_I32,
    "int64": libspu.DataType.DT_I64,
    "bool": libspu.DataType.DT_I1,
}

_SHARED, _SHARED_BITS, _PUBLIC = "aby3.AShr<FM64>", "aby3.BShr<PT_U8,1>", "Pub2k<"  # SPU's names of its ways to store

# A declared shape is only numbers in a message. So many elements are 32 GiB of shares: more is a mistake or an attack.
MAX_ELEMENTS = 1 << 31

MOST_TOGETHER = 64  # requests of a run: a party holds the inputs of all

MOST_ABOUT = 1 << 16  # characters of `about`, which every caller gets

_SHORTEST_PIECE = 1 << 20  # bytes: SPU cuts shares into pieces of 128 MiB, and many short ones would only cost


def variable(name: str, spec: Spec) -> pb.Variable:
    """Return a spec as a message."""
    return pb.Variable(name=name, shape=spec.shape, dtype=spec.dtype, public=spec.public)


def meta_of(item: pb.Variable) -> libspu.ValueMeta:
    """Return SPU's head of a secret variable's share."""
    meta = libspu.ValueMeta()
    meta.data_type, meta.visibility = _TYPES[item.dtype], libspu.Visibility.VIS_SECRET
    meta.shape, meta.storage_type = list(item.shape), _SHARED_BITS if item.dtype == "bool" else _SHARED
    return meta


def engine_of(manifest: pb.Manifest | pb.Model) -> EngineConfig:
    """Return the configuration of SPU for a model."""
    return EngineConfig(fraction_bits=manifest.fraction_bits, exp=manifest.exp)


def check_manifest(manifest: pb.Manifest) -> None:
    """Check all that a party can know of a model before it runs.

    Every program is one that the party accepts (`signature_of`). Every call reads variables that exist, with the shapes and
    secrecy that its program expects. Outputs are written by a call, and values and inputs have different names. Where requests
    may be computed together, the same holds of those calls, and shapes are those of so many requests. That such programs keep
    the requests apart is the owner's word: no party can see it from their text.

    Raises:
        CipherDMError: something is wrong; the message names it.
    """
    if not _NAME.fullmatch(manifest.name):  # it becomes the name of a file, so no path may be hidden in it
        raise CipherDMError(
            f"{manifest.name!r} is no name for a model: take letters, digits, '.', '_' and '-', at most 64."
        )
    if not _REGISTRATION.fullmatch(manifest.registration):
        raise CipherDMError("a registration is named by 32 hexadecimal digits; make it with uuid4().hex.")
    if not 1 <= manifest.fraction_bits <= 62 or manifest.exp not in ("taylor", "pade"):
        raise CipherDMError("a model has 1 to 62 fraction bits, and exp is taylor or pade.")
    if any(call.small for call in (*manifest.calls, *manifest.together.calls)):
        raise CipherDMError("hosts compute in the ring of 64 bits alone; choose a protocol set without that of 32.")
    if len(manifest.about) > MOST_ABOUT:
        raise CipherDMError(f"what clients are told of a model has at most {MOST_ABOUT} characters.")
    known: dict[str, Type] = {}
    for item in (*manifest.values, *manifest.inputs):
        _check_variable(item)
        if item.name in known:
            raise CipherDMError(f"{item.name!r} is declared twice.")
        known[item.name] = Type(tuple(item.shape), not item.public)
    for item in manifest.inputs:
        if item.public:
            raise CipherDMError(f"the input {item.name!r} is public; a client's inputs are secret. Declare it so.")
    signatures = {
        code.id: (signature_of_walk if code.walk else signature_of)(code.name, code.text) for code in manifest.programs
    }
    if not manifest.outputs:
        raise CipherDMError("a model needs an output: name one that a call writes.")
    written = _check_calls(manifest.calls, known, signatures, manifest.outputs)
    if manifest.HasField("together"):
        known |= _check_rows(manifest)
        together = _check_calls(manifest.together.calls, known, signatures, manifest.outputs)
        for name in manifest.outputs:
            one, all_of = written[name].shape, together[name].shape
            if not one or all_of != (manifest.together.requests * one[0], *one[1:]):
                raise CipherDMError(f"the output {name!r} of requests together does not have them one after the other.")


def _check_rows(manifest: pb.Manifest) -> dict[str, Type]:
    """Check the inputs of requests that are computed together; return their types."""
    together, known = manifest.together, {}
    if not 2 <= together.requests <= MOST_TOGETHER:
        raise CipherDMError(f"2 to {MOST_TOGETHER} requests are computed together, not {together.requests}.")
    if not len(manifest.inputs) == len(together.inputs) == len(together.parts):
        raise CipherDMError("requests together take the inputs that each of them takes; declare all of them.")
    for one, item, parts in zip(manifest.inputs, together.inputs, together.parts, strict=True):
        _check_variable(item)
        size = math.prod(one.shape)
        alike = (item.name, item.dtype, item.public) == (one.name, one.dtype, one.public)
        if not (alike and size and math.prod(item.shape) == together.requests * size and parts and not size % parts):
            raise CipherDMError(
                f"{item.name!r} of requests together is not made of {one.name!r} of each; declare it so."
            )
        known[item.name] = Type(tuple(item.shape), secret=True)
    return known


def _check_head(piece: engine_pb.SharePiece, declared: pb.Variable) -> None:
    """Raise CipherDMError unless a share's head has the declared shape, dtype and secrecy, and SPU's storage for them."""
    meta = libspu.ValueMeta()
    if not meta.ParseFromString(piece.meta):
        raise CipherDMError(f"the share of {piece.name!r} cannot be read.")
    visibility = libspu.Visibility.VIS_PUBLIC if declared.public else libspu.Visibility.VIS_SECRET
    storage = _PUBLIC if declared.public else _SHARED_BITS if declared.dtype == "bool" else _SHARED
    fits = (
        meta.visibility == visibility
        and tuple(meta.shape.dims) == tuple(declared.shape)
        and meta.data_type == _TYPES[declared.dtype]
        and meta.storage_type.startswith(storage)
    )
    if not fits:
        raise CipherDMError(
            f"the share of {piece.name!r} is not {declared.dtype}{list(declared.shape)}, "
            f"{'public' if declared.public else 'secret'}, as it was declared."
        )


def checked_shares(
    pieces: Iterable[engine_pb.SharePiece], declared: Iterable[pb.Variable]
) -> Iterator[engine_pb.SharePiece]:
    """Yield the pieces of one party's shares as they come: each declared variable once and whole, and nothing else.

    SPU ends the process that is given a share whose bytes do not fit its shape, so none gets there.

    Raises:
        Forbidden: a piece belongs to something else, or to a variable that came before.
        CipherDMError: a share is not as it was declared, or one is missing in the end.
    """
    waiting = {item.name: item for item in declared}
    for name, of_name in groupby(pieces, lambda piece: piece.name):
        if name not in waiting:
            raise Forbidden(f"{name!r} was not declared, or came twice")
        yield from _checked_share(of_name, waiting.pop(name))
    if waiting:
        raise CipherDMError(f"the share of {next(iter(waiting))!r} is missing or incomplete.")


def _checked_share(pieces: Iterable[engine_pb.SharePiece], declared: pb.Variable) -> Iterator[engine_pb.SharePiece]:
    # Numbers of the ring have 8 bytes, bits 1; of a secret, a party holds two components.
    whole = math.prod(declared.shape) * (8 if declared.public else 2 if declared.dtype == "bool" else 16)
    done = index = 0
    chunk, first = libspu.ValueChunk(), None
    for index, piece in enumerate(pieces):
        _check_head(piece, declared)
        first = first or piece
        fits = (
            chunk.ParseFromString(piece.chunk)
            and (chunk.total_bytes, chunk.chunk_offset) == (whole, done)
            and (piece.chunk_index, piece.chunk_count) == (index, first.chunk_count)
            and first.chunk_count <= 1 + whole // _SHORTEST_PIECE
        )
        done += len(chunk.content)
        if not fits or done > whole:
            raise CipherDMError(f"the share of {piece.name!r} does not come in the pieces that its shape needs.")
        yield piece
    if done < whole or index + 1 < first.chunk_count:
        raise CipherDMError(f"the share of {declared.name!r} is missing or incomplete.")


def _check_variable(item: pb.Variable) -> None:
    if not 0 < len(item.name) <= 256 or not item.name.isprintable():
        raise CipherDMError("a variable needs a name of 1 to 256 printable characters.")
    if item.dtype not in _TYPES:
        raise CipherDMError(f"{item.name!r} is {item.dtype}; values are {', '.join(_TYPES)}.")
    elements = math.prod(item.shape)
    if elements > MAX_ELEMENTS:
        raise CipherDMError(f"{item.name!r} has {elements} elements, more than {MAX_ELEMENTS}.")


def _check_calls(
    calls: Iterable[engine_pb.Call], known: dict[str, Type], signatures: Mapping[str, Signature], outputs: Iterable[str]
) -> dict[str, Type]:
    """Check calls in their order; return the types of what they have written and not freed in the end."""
    known, written = dict(known), set()
    for call in calls:
        missing = [name for name in call.inputs if name not in known]
        if missing:
            raise CipherDMError(f"{call.label} reads {missing[0]!r}, which nobody has written before.")
        if call.files:
            raise CipherDMError(f"{call.label} writes to files, which registered models do not; compile it without.")
        signature = signatures.get(call.program)
        if signature is None:
            raise CipherDMError(f"{call.label} needs the program {call.program!r}, which is not there.")
        _check_arguments(call, known, signature.inputs)
        results = len(signature.outputs)
        if results != len(call.outputs):
            raise CipherDMError(f"{call.label} names {len(call.outputs)} results, and there are {results}.")
        known.update(zip(call.outputs, signature.outputs, strict=True))
        written.update(call.outputs)
        for name in call.frees:
            known.pop(name, None)
            written.discard(name)
    for name in outputs:
        if name not in written:
            raise CipherDMError(f"the output {name!r} is written by no call, or freed again.")
    return {name: known[name] for name in written}


def _check_arguments(call: engine_pb.Call, known: Mapping[str, Type], expected: tuple[Type, ...]) -> None:
    if len(call.inputs) != len(expected):
        raise CipherDMError(f"{call.label} names {len(call.inputs)} arguments, and its program takes {len(expected)}.")
    for name, want in zip(call.inputs, expected, strict=True):
        if known[name] != want:
            raise CipherDMError(f"{call.label} reads {name!r}, whose shape or secrecy is not what its program expects.")
