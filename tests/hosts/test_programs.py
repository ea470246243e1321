"""What a party agrees to run: programs as they are compiled here, and none that opens a secret in any way of writing it."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small import SCHEDULER, TWO_LEVELS
from spu import api, libspu

from cipherdm import CipherDMError
from cipherdm.engine import EngineConfig, Node, Spec, Walking, compile_plan, compile_program
from cipherdm.engine.programs import compile_walk
from cipherdm.hosts import Model, Timeouts, sampling_model
from cipherdm.hosts.programs import Signature, Type, signature_of, signature_of_walk
from cipherdm.hosts.worker import Worker
from cipherdm.models import init_unet
from cipherdm.protocols import DIRECT, named
from cipherdm.protocols.fixed import ENGINE_FRACTION_BITS, Fixed
from cipherdm.sampling import make_task, sampling_nodes

pytestmark = pytest.mark.attack

SECRET, PUBLIC = "tensor<!pphlo.secret<i32>>", "tensor<i32>"
BIT, ROW = "tensor<!pphlo.secret<i1>>", "tensor<4x!pphlo.secret<f32>>"
ONE = "tensor<1x!pphlo.secret<f32>>"
# SPU 0.9.5 runs the first five of these, and all three parties then have the secret.
OPENING = {
    "a call": f"(%arg0: {SECRET}) -> {PUBLIC} {{\n%0 = pphlo.custom_call @spu.reveal(%arg0) : ({SECRET}) -> {PUBLIC}\n",
    "an escaped call": f"(%arg0: {SECRET}) -> {PUBLIC} {{\n"
    f'%0 = "pphlo.custom_call"(%arg0) {{call_target_name = "spu.re\\76eal"}} : ({SECRET}) -> {PUBLIC}\n',
    "an escaped name": f"(%arg0: {SECRET}) -> {PUBLIC} {{\n"
    f'%0 = "pphlo.cus\\74om_call"(%arg0) {{call_target_name = "spu.re\\76eal"}} : ({SECRET}) -> {PUBLIC}\n',
    "a conversion": f"(%arg0: {SECRET}) -> {PUBLIC} {{\n%0 = pphlo.convert %arg0 : ({SECRET}) -> {PUBLIC}\n",
    "a conversion without blanks": f"(%arg0: {SECRET}) -> {PUBLIC} {{\n%0 = pphlo.convert %arg0 : ({SECRET})->{PUBLIC}\n",
    "a conversion by alias": f"(%arg0: !t0) -> {PUBLIC} {{\n%0 = pphlo.convert %arg0 : (!t0) -> {PUBLIC}\n",
}
UNUSUAL = {
    "a conversion over two lines": f"(%arg0: {SECRET}) -> {PUBLIC} {{\n%0 = pphlo.convert\n%arg0 : ({SECRET}) -> {PUBLIC}\n",
    "a generic operation": f'(%arg0: {SECRET}) -> {SECRET} {{\n%0 = "pphlo.negate"(%arg0) : ({SECRET}) -> {SECRET}\n',
    "a branch": f"(%arg0: {BIT}) -> {BIT} {{\n%0 = pphlo.if %arg0 : {BIT}\n",
    "a comment": f"(%arg0: {SECRET}) -> {SECRET} {{\n%0 = pphlo.negate %arg0 : {SECRET} // x\n",
    "a print": f"(%arg0: {SECRET}) -> {SECRET} {{\npphlo.custom_call @spu.dbg_print(%arg0) : ({SECRET}) -> {SECRET}\n",
    "another dialect": f"(%arg0: {SECRET}) -> {SECRET} {{\n%0 = arith.negf %arg0 : {SECRET}\n",
    "an unknown type": f"(%arg0: !t9) -> {SECRET} {{\n%0 = pphlo.negate %arg0 : {SECRET}\n",
    "a function call": f"(%arg0: {SECRET}) -> {SECRET} {{\n%0 = call @other(%arg0) : ({SECRET}) -> {SECRET}\n",
    "a secret place": f"(%arg0: {ROW}, %arg1: {SECRET}) -> {ONE} {{\n"
    f"%0 = pphlo.dynamic_slice %arg0, %arg1 sizes = [1] : ({ROW}, {SECRET}) -> {ONE}\n",
    "a secret place to write": f"(%arg0: {ROW}, %arg1: {SECRET}, %arg2: {ONE}) -> {ROW} {{\n"
    f"%0 = pphlo.dynamic_update_slice %arg0, %arg2, %arg1 : ({ROW}, {ONE}, {SECRET}) -> {ROW}\n",
    "a secret condition": f"(%arg0: {SECRET}) -> {SECRET} {{\n%0 = pphlo.while(%arg1 = %arg0) : {SECRET}\n cond {{\n"
    f"%2 = pphlo.less %arg1, %arg1 : ({SECRET}, {SECRET}) -> {BIT}\n pphlo.return %2 : {BIT}\n}} do {{\n"
    f"pphlo.return %arg1 : {SECRET}\n}}\n",
}
# A loop that hands a secret on as the value that it declares public, to take it for a condition or a place.
HEAD = "module @jit_f attributes {mhlo.is_dynamic = false} {\n"
PUBLIC_BIT = "tensor<i1>"
LOOP = f"""{HEAD}func.func @main(%arg0: {SECRET}) -> {PUBLIC} {{
%0 = pphlo.constant dense<true> : {PUBLIC_BIT}
%1 = pphlo.constant dense<1> : {PUBLIC}
%2:2 = pphlo.while(%arg1 = %0, %arg2 = %1) : {PUBLIC_BIT}, {PUBLIC}
 cond {{
pphlo.return %arg1 : {PUBLIC_BIT}
}} do {{
%4 = pphlo.add %arg2, %1 : {PUBLIC}
%5 = pphlo.less %4, %arg0 : ({PUBLIC}, {SECRET}) -> ANSWER
pphlo.return %5, %4 : ANSWER, {PUBLIC}
}}
return %2#1 : {PUBLIC}
}}
}}
"""
# Texts whose every type is as it should be, but one that is false. It is SPU's part to find that.
FALSE_TYPES = {
    "a condition": LOOP.replace("ANSWER", PUBLIC_BIT),
    "a result": f"{HEAD}func.func @main(%arg0: {SECRET}) -> {PUBLIC} {{\n"
    f"%0 = pphlo.negate %arg0 : ({SECRET}) -> {PUBLIC}\nreturn %0 : {PUBLIC}\n}}\n}}\n",
    "an argument": LOOP.replace("ANSWER", PUBLIC_BIT).replace(SECRET, PUBLIC),
    # This one SPU runs if it is not told to check.
    "an argument that is negated": f"{HEAD}func.func @main(%arg0: {PUBLIC}) -> {PUBLIC} {{\n"
    f"%0 = pphlo.negate %arg0 : {PUBLIC}\nreturn %0 : {PUBLIC}\n}}\n}}\n",
    "an exponent": f"{HEAD}func.func @main(%arg0: {SECRET}) -> {PUBLIC} {{\n"
    f"%0 = pphlo.shift_left %arg0, %arg0 : ({SECRET}, {SECRET}) -> {PUBLIC}\nreturn %0 : {PUBLIC}\n}}\n}}\n",
}
# Two programs in one line of the header, of which SPU runs the first.
ESCAPED_CALL = f'%0 = "pphlo.cus\\74om_call"(%arg0) {{call_target_name = "spu.re\\76eal"}} : ({SECRET}) -> {PUBLIC}'
HIDDEN = f"""module @a attributes {{}} {{ func.func @main(%arg0: {SECRET}) -> {PUBLIC} {{ {ESCAPED_CALL} return %0 : {PUBLIC} \
}} module @b attributes {{}} {{
func.func @main(%arg0: {SECRET}) -> {SECRET} {{
return %arg0 : {SECRET}
}}
}}
}}
"""
GATHER = (
    f"(%arg0: {ROW}, %arg1: tensor<1xi32>) -> {ONE} {{\n%0 = pphlo.custom_call @spu.gather(%arg0, %arg1) "
    f"{{pphlo.attributes = {{x = 1 : i64}}}} : ({ROW}, tensor<1xi32>) -> {ONE}"
)
FRAME = "func.func @main(%arg0: tensor<i32>) -> tensor<i32> {\n"
LONG = {
    "brackets": "pphlo.while(" + ")" * 40_000,
    "loops on a line": "pphlo.while()" * 3_000,
    "a loop and blanks": "pphlo.while()\n" + " " * 40_000,
    "loops with blanks": "pphlo.while() : tensor<i32>\n    " * 1_200,
    "returns": "pphlo.return %0 : tensor<i32>\n" * 1_300,
    "dynamic slices": "pphlo.dynamic_slice " + " : (" * 10_000,
    "an extent": "tensor<" + "1x" * 20_000,
    "tensors": "tensor<1x" * 4_000,
    "a word": "a" * 40_000,
    "words": "a1" * 20_000,
    "a dotted word": "a." * 20_000,
    "values": "%a" * 20_000,
    "a conversion": "pphlo.convert %a : (" + "x" * 40_000,
    "conversions": "pphlo.convert %a : (tensor<" * 1_500,
    "a header": "module @a attributes {" + "x" * 40_000,
    "headers": "module @a attributes {" * 2_000,
    "a gather": "pphlo.custom_call @spu.gather(%a, %b) {pphlo.attributes = {" + " " * 40_000,
    "functions": "func.func @main(" * 2_500,
    "aliases": "!t1 = tensor<i32>\n" * 2_000,
}


def text(main: str) -> bytes:
    """A module around a function's types and first lines."""
    result = main.partition("-> ")[2].partition(" {")[0]
    body = f"func.func @main{main}return %0 : {result}\n}}\n}}\n"
    return f"!t0 = {SECRET}\nmodule @jit_f attributes {{mhlo.is_dynamic = false}} {{\n{body}".encode()


@pytest.mark.parametrize("main", OPENING.values(), ids=OPENING)
def test_programs_that_open_a_secret_are_refused(main):
    with pytest.raises(CipherDMError, match="reveals a secret|is not one that this party runs"):
        signature_of("f", text(main))


@pytest.mark.parametrize("main", UNUSUAL.values(), ids=UNUSUAL)
def test_programs_that_are_not_understood_are_refused(main):
    with pytest.raises(CipherDMError, match="is not one that this party runs|reveals"):
        signature_of("f", text(main))


def test_nothing_hides_in_a_header_or_behind_a_type():
    with pytest.raises(CipherDMError, match="is not one that this party runs"):
        signature_of("f", HIDDEN.encode())
    signature_of("f", text(f"{GATHER}\n"))
    for hidden in ('%1="pphlo.cus\\74om_call"(%arg0)', f"%1=pphlo.custom_call@spu.x(%arg0):({ROW})->{ONE}"):
        with pytest.raises(CipherDMError, match="is not one that this party runs"):
            signature_of("f", text(f"{GATHER}{hidden}\n"))


def test_loops_return_what_they_carry():
    signature_of("f", LOOP.replace("ANSWER", PUBLIC_BIT).encode())
    with pytest.raises(CipherDMError, match="a loop carries tensor<i1>.* and its body returns .*secret"):
        signature_of("f", LOOP.replace("ANSWER", BIT).encode())


@pytest.mark.parametrize(
    "code", [*FALSE_TYPES.values(), LOOP.replace("ANSWER", BIT)], ids=[*FALSE_TYPES, "a loop's value"]
)
def test_spu_runs_no_program_whose_types_are_false(code):
    """Parties have SPU check types, as they must: the text alone cannot show that they are true."""
    config = EngineConfig().runtime_config()
    config.enable_type_checker = True
    shares = api.Io(3, config).make_shares(np.asarray(7, np.int32), libspu.Visibility.VIS_SECRET)
    description = libspu.link.Desc()
    for rank in range(3):
        description.add_party(f"party{rank}", f"{hash(code)}-{rank}")
    description.recv_timeout_ms = 1000

    def run(rank: int) -> None:
        runtime = api.Runtime(libspu.link.create_mem(description, rank), config)
        runtime.set_var("x", shares[rank])
        runtime.run(libspu.Executable("f", ["x"], ["y"], code.encode()))

    with ThreadPoolExecutor(3) as threads:
        errors = [threads.submit(run, rank).exception() for rank in range(3)]
    assert all(errors), errors


def test_parties_have_types_checked_as_they_run():
    worker = Worker.__new__(Worker)
    worker._rank, worker._timeouts = 1, Timeouts()
    worker._stub = Mock(Run=lambda _: (), Fetch=lambda _: ())
    spec = Spec((3, 4))
    plan = compile_plan([Node("square", jnp.square, ("x",), ("y",))], {"x": spec}, ("y",))
    manifest = Model("m", plan, {}, {"x": spec}, ("y",)).manifest("0" * 32)
    list(worker.compute("run", Mock(manifest=manifest, pieces=tuple), [], manifest.calls))
    config = libspu.RuntimeConfig()
    config.ParseFromString(worker._stub.Open.call_args[0][0].runtime_config)
    assert config.enable_type_checker


@pytest.mark.parametrize("body", LONG.values(), ids=LONG)
def test_long_texts_take_no_longer_than_their_length(body):
    for code in (f"{HEAD}{FRAME}{body}\nreturn %arg0 : tensor<i32>\n}}\n}}\n", body):
        begin = time.process_time()
        with suppress(CipherDMError):
            signature_of("f", code.encode())
        assert time.process_time() - begin < 0.1


def test_there_is_a_limit_to_a_text():
    with pytest.raises(CipherDMError, match="more than 16 MiB"):
        signature_of("f", b" " * (1 << 24) + b"\n")


def test_the_frame_of_these_programs_is_not_what_is_refused():
    main = f"(%arg0: {SECRET}, %arg1: {PUBLIC}) -> {SECRET} {{\n%0 = pphlo.convert %arg1 : ({PUBLIC}) -> {SECRET}\n"
    assert signature_of("f", text(main)) == Signature((Type((), True), Type((), False)), (Type((), True),))


def test_signatures_are_those_of_the_functions():
    def function(x, table, step):
        row = lax.dynamic_index_in_dim(table, step, axis=0, keepdims=False)
        total = lax.fori_loop(0, 3, lambda _, value: value * row, jax.nn.softmax(x))
        return total, jnp.sum(x, axis=1)

    inputs = (Spec((3, 4)), Spec((5, 3, 4)), Spec((), "int32", public=True))
    found = signature_of("f", compile_program(function, inputs).code)
    assert found.inputs == tuple(Type(spec.shape, not spec.public) for spec in inputs)
    assert found.outputs == (Type((3, 4), True), Type((3,), True))


def test_walks_have_the_signatures_of_their_functions_and_open_nothing():
    def function(x, y, place):
        x, y = (Fixed.load(words, 5, ring=True) for words in (x, y))
        number = Fixed(jnp.matmul(x.array, y.array), 10, ring=True).truncated(5)
        return lax.dynamic_index_in_dim(number.store(), place, axis=0, keepdims=False)

    inputs = (Spec((3, 4)), Spec((4, 2)), Spec((), "int32", public=True))
    program = compile_walk(function, inputs, Walking(ENGINE_FRACTION_BITS))
    assert program.outputs == (Spec((2,)),)
    types = (*(Type(spec.shape, not spec.public) for spec in inputs), Type((2,), True))
    assert signature_of_walk("f", program.code) == Signature(types[:3], types[3:])
    fields = json.loads(program.code)
    result, (of_public,) = fields["program"]["outputs"][0], [n for n, p in enumerate(program.inputs) if p.public]
    operations = fields["program"]["operations"]
    secretly = [
        [kind, [read[0]] * len(read) if kind == "dynamic_slice" else read, *rest] for kind, read, *rest in operations
    ]
    assert secretly != operations
    changes = {
        "a secret place, which the length of a message would tell": {"operations": secretly},
        "public": {"public": [*fields["program"]["public"], result]},
        "a public argument": {"outputs": fields["program"]["inputs"][of_public:]},
        "no operation": {"operations": [["reveal", [0], result, {}]]},
        "no number": {"inputs": [0.5]},
        "a number of no value": {"outputs": [10**9]},
        "no shape": {"shapes": 3},
    }
    for change in changes.values():
        text = json.dumps(fields | {"program": fields["program"] | change})
        with pytest.raises(CipherDMError, match="'f' is not one that this party runs"):
            signature_of_walk("f", text.encode())
    small = json.dumps(fields | {"bits": [32 if n == result else bits for n, bits in enumerate(fields["bits"])]})
    with pytest.raises(CipherDMError, match="results are not of 64 bits"):
        signature_of_walk("f", small.encode())
    for text in (b"", b"{}", b"[" * 100_000, b"\xff", program.code[:-1], b" " * (1 << 24) + b"1"):
        with pytest.raises(CipherDMError, match="'f' is not one that this party runs"):
            signature_of_walk("f", text)


@pytest.mark.parametrize(("protocols", "granularity"), [("cipherdm", "step")])
def test_all_programs_of_a_model_are_accepted(protocols, granularity):
    task = make_task(_unet(), count=2, steps=2, scheduler="ddpm", protocols=named(protocols))
    plan = compile_plan(sampling_nodes(task.shape, granularity), task.specs, keep=["sample"])
    for program in {call.program for call in plan.calls}:
        signature = signature_of(program.name, program.code)
        assert [kind.shape for kind in signature.inputs] == [spec.shape for spec in program.inputs]
        assert [kind.secret for kind in signature.inputs] == [not spec.public for spec in program.inputs]
        assert [kind.shape for kind in signature.outputs] == [spec.shape for spec in program.outputs]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": {"x": Spec((3, 9))}}, "reads 'x', whose shape or secrecy"),
        ({"inputs": {"x": Spec((3, 4), public=True)}}, "the input 'x' is public"),
        ({"inputs": {"z": Spec((3, 4))}}, "reads 'x', which nobody has written"),
        ({"inputs": {"w": Spec((3, 4))}}, "'w' is declared twice"),
        ({"values": {}, "public": {"w": np.ones((2, 3), np.float32)}}, "reads 'w', whose shape or secrecy"),
        ({"outputs": ("w",)}, "the output 'w' is written by no call"),
        ({"outputs": ()}, "needs an output"),
        ({"name": "../../etc"}, "is no name for a model"),
        ({"inputs": {"x": Spec((3, 4)), "\x1b[31m": Spec((3, 4))}}, "1 to 256 printable characters"),
        ({"about": {"a": "b" * (1 << 16)}}, "at most 65536 characters"),
    ],
)
def test_models_that_do_not_fit_together_are_refused(change, message):
    w, x = np.ones((2, 3), np.float32), Spec((3, 4))
    plan = compile_plan([Node("product", jnp.matmul, ("w", "x"), ("y",))], {"w": Spec.of(w), "x": x}, ("y",))
    good = {"name": "m", "plan": plan, "values": {"w": w}, "inputs": {"x": x}, "outputs": ("y",)}
    Model(**good).manifest("0" * 32)
    with pytest.raises(CipherDMError, match=message):
        Model(**(good | change)).manifest("0" * 32)


def test_a_registered_plan_writes_no_files():
    spec = Spec((3, 4))
    plan = compile_plan([Node("square", jnp.square, ("x",), ("y",))], {"x": spec}, ("y",), files=("y",))
    with pytest.raises(CipherDMError, match="writes to files, which registered models do not"):
        Model("m", plan, {}, {"x": spec}, ("y",)).manifest("0" * 32)


def _unet():
    return replace(init_unet(TWO_LEVELS), scheduler_config=SCHEDULER)


def test_unknown_sets_cannot_be_registered():
    with pytest.raises(CipherDMError, match="by their names only"):
        sampling_model("m", _unet(), protocols=replace(DIRECT, silu=jnp.sin))
