import re

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cipherdm import CipherDMError
from cipherdm.engine import Call, EngineConfig, Plan, Spec, compile_program, programs
from cipherdm.engine.programs import shorten

TEXT = b"""module @f {
  func.func @main(%arg0: tensor<2x3x!pphlo.secret<f32>>) -> tensor<f32> {
    %0 = pphlo.add %arg0, %arg0 : tensor<2x3x!pphlo.secret<f32>>
    %1 = pphlo.transpose %0, dims = [1, 0]LAYOUT : (IN) -> tensor<3x2x!pphlo.secret<f32>>
    pphlo.free %0 : tensor<2x3x!pphlo.secret<f32>>
    pphlo.free %1 : tensor<300x200x!pphlo.secret<f32>>
    return %2 : tensor<f32>
  }
}
""".replace(b"IN", b"tensor<2x3x!pphlo.secret<f32>>")
LAYOUT = b' {result_layout = dense<[0, 1]> : tensor<2xindex>, xla_shape = "f32[3,2]{0,1}"}'
TEXT = TEXT.replace(b"LAYOUT", LAYOUT)


def test_types_get_names_and_small_values_stay():
    assert (
        shorten(TEXT, small=6).decode()
        == """!t0 = tensor<2x3x!pphlo.secret<f32>>
!t1 = tensor<f32>
!t2 = tensor<3x2x!pphlo.secret<f32>>
!t3 = tensor<300x200x!pphlo.secret<f32>>
module @f {
  func.func @main(%arg0: !t0) -> !t1 {
    %0 = pphlo.add %arg0, %arg0 : !t0
    %1 = pphlo.transpose %0, dims = [1, 0] : (!t0) -> !t2
    pphlo.free %1 : !t3
    return %2 : !t1
  }
}
"""
    )
    assert shorten(TEXT, small=5).count(b"pphlo.free") == 2


def repeated(x, weight):
    """Everything that the text of a program has: a loop, constants, conversions, layouts of dimensions."""

    def body(index, y):
        row = lax.dynamic_index_in_dim(weight, index, keepdims=False)
        return (y.T @ row + jnp.float32(0.5)).T * jnp.float32(0.1) + lax.bitcast_convert_type(
            lax.bitcast_convert_type(y, jnp.int32), jnp.float32
        )

    return lax.fori_loop(0, 3, body, x)


def test_shortened_programs_compute_the_same(cluster):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(3, 3)).astype(np.float32) * np.float32(0.3)
    weight = generator.normal(size=(3, 3, 3)).astype(np.float32)
    program = compile_program(repeated, (Spec.of(x), Spec.of(weight)))
    assert b"tensor<" not in re.sub(rb"^!t\d+ = .*$", b"", program.code, flags=re.MULTILINE)
    session = cluster.session(EngineConfig())
    session.share({"x": x, "weight": weight})
    session.run(Plan((Call(program, ("x", "weight"), ("y",), "repeated"),)))
    np.testing.assert_allclose(session.reveal("y"), repeated(x, weight), atol=1e-3)


def test_compiled_in_another_process_a_program_is_the_same(monkeypatch):
    def function(x, y):
        return jnp.exp(x) @ y

    specs = (Spec((2, 3)), Spec((3, 4), public=True))
    here = compile_program(function, specs)
    monkeypatch.setattr(programs, "LARGE_HLO", 0)
    assert compile_program.__wrapped__(function, specs) == here
    with pytest.raises(CipherDMError, match="SPU cannot compile fft: failed to legalize operation .stablehlo.fft"):
        compile_program.__wrapped__(jnp.fft.fft, (Spec((8,)),))
