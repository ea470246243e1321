"""Fixed-point numbers whose truncations are written out, where SPU's own truncate after every product.

A product of shares is one message of 8 bytes per party and number; the truncation that SPU appends to it is 5 messages more
(all parties). The ring has 64 bits, so several products fit before a truncation is due, and one truncation can serve a sum
of products. `Fixed` holds an array with its number of fraction bits, multiplies without truncating, and truncates when told
to.

One definition is read in two ways. On shares (`ring=True`) the array is ring words, which SPU takes for integers: a
float's share and an integer's differ in their type alone, and a bitcast changes it. In plaintext (`ring=False`) the array
is the real numbers, rounded where the ring would be truncated, and NaN where it would overflow.
"""

import math
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jax import lax

# SPU multiplies by a public factor c as by round(c 2^44) followed by a truncation by 44 bits, so truncations by up to 42 bits
# are one multiplication by a power of two. SPU truncates words below 2^62, so the result must stay below 2^(62 - 44). More
# bits would truncate more at once and leave less room for the result.
ENGINE_FRACTION_BITS = 44
_LONGEST_SHIFT = ENGINE_FRACTION_BITS - 2
_WORD_BITS = 62
MOST_TOGETHER = 4096  # numbers per message saved by products all with all: below 100 KB of all parties

# Below these, broadcast and transposed arrays are left as views: every operation of SPU takes time, whatever its size.
LEAST_REPEATS, LEAST_NUMBERS = 4, 2048


@dataclass(frozen=True)
class Fixed:
    """An array of numbers value = word / 2^bits.

    Attributes:
        array: int32 by name and 64 bits in SPU's ring, if `ring`; else float32 values.
        bits: number of fraction bits.
        ring: True for ring words, False for real numbers.
    """

    array: jnp.ndarray
    bits: int
    ring: bool

    @classmethod
    def load(cls, array, bits: int, ring: bool) -> "Fixed":
        """Return the numbers of a float32 array as `encode` makes it and programs exchange it."""
        return cls(lax.bitcast_convert_type(array, jnp.int32) if ring else array, bits, ring)

    def store(self):
        """Return the array that `load` takes."""
        return lax.bitcast_convert_type(self.array, jnp.float32) if self.ring else self.array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    @property
    def ndim(self) -> int:
        """Number of the array's axes."""
        return self.array.ndim

    def with_array(self, array) -> "Fixed":
        """Return another array with these fraction bits and this reading."""
        return replace(self, array=array)

    def reshape(self, *shape) -> "Fixed":
        """Return the numbers in another shape, as an array's `reshape`."""
        return self.with_array(self.array.reshape(*shape))

    def __getitem__(self, index) -> "Fixed":
        return self.with_array(self.array[index])

    def raised(self, bits: int) -> "Fixed":
        """Return the numbers with more fraction bits. Free. Raises ValueError for fewer, which takes a truncation."""
        if bits < self.bits:
            raise ValueError(f"{self.bits} fraction bits do not become {bits} without truncation")
        array, left = self.array, bits - self.bits if self.ring else 0
        while left:  # in pieces, because JAX takes the words for 32 bits wide
            array, left = array << np.int32(min(left, 30)), left - min(left, 30)
        return Fixed(array, bits, self.ring)

    def times_power_of_two(self, exponent: int) -> "Fixed":
        """Return the numbers times 2^exponent, by moving the point. Free."""
        array = self.array if self.ring else self.array * np.float32(2.0**exponent)
        return Fixed(array, self.bits - exponent, self.ring)

    def truncated(self, bits: int) -> "Fixed":
        """Return the numbers with fewer fraction bits. 5 messages. In the ring the last bit is up or down at random.

        Right for values below 2^(18 - bits). Raises ValueError if more than 42 bits are to go.
        """
        shift = self.bits - bits
        if shift <= 0:
            return self.raised(bits)
        if shift > _LONGEST_SHIFT:
            raise ValueError(f"{shift} bits cannot be truncated at once; {_LONGEST_SHIFT} can")
        if self.ring:
            return Fixed.load(self.store() * np.float32(2.0**-shift), bits, True)
        fits = jnp.abs(self.array) < np.float32(2.0 ** (_WORD_BITS - ENGINE_FRACTION_BITS - bits))
        rounded = jnp.round(self.array * np.float32(2.0**bits)) * np.float32(2.0**-bits)
        return Fixed(jnp.where(fits, rounded, jnp.float32(np.nan)), bits, False)

    def renewed(self) -> "Fixed":
        """Return the numbers by a truncation of no bits, by which a walk takes them to another ring."""
        return Fixed.load(self.store() * np.float32(1), self.bits, True) if self.ring else self

    def __add__(self, other: "Fixed") -> "Fixed":
        bits = max(self.bits, other.bits)
        first, second = _alike(self.raised(bits), other.raised(bits))
        return Fixed(first + second, bits, self.ring)

    def __sub__(self, other: "Fixed") -> "Fixed":
        return self + -other

    def __neg__(self) -> "Fixed":
        return self.with_array(-self.array)

    def __mul__(self, other: "Fixed") -> "Fixed":
        """Return the product, not truncated. 3 messages, or none if one factor is public."""
        first, second = _alike(self, other)
        return Fixed(first * second, self.bits + other.bits, self.ring)


def _alike(first: Fixed, second: Fixed) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Return two operands' arrays in one shape."""
    if first.shape == second.shape or not first.ring:
        return first.array, second.array
    shape = jnp.broadcast_shapes(first.shape, second.shape)
    return spread(first.array, shape), spread(second.array, shape)


def encode(values: np.ndarray, bits: int, ring: bool, engine: int = ENGINE_FRACTION_BITS) -> np.ndarray:
    """Return float32 values as `Fixed.load` takes them, rounded to `bits` fraction bits. To be done before sharing.

    `engine` is the number of the engine's own fraction bits: SPU makes the word round(float 2^engine) of a float.
    """
    words = np.round(np.asarray(values, np.float64) * 2.0**bits)
    return (words * 2.0 ** -(engine if ring else bits)).astype(np.float32)


def decode(array: np.ndarray, bits: int, ring: bool) -> np.ndarray:
    """Return the float32 values of a revealed array that `Fixed.store` made."""
    return array * np.float32(2.0 ** (ENGINE_FRACTION_BITS - bits)) if ring else array


def concatenate(parts, axis: int = 0):
    """Join arrays or `Fixed` numbers as jnp.concatenate does, at the most fraction bits of the parts. Free."""
    if not isinstance(parts[0], Fixed):
        return jnp.concatenate(parts, axis)
    bits = max(part.bits for part in parts)
    return Fixed(jnp.concatenate([part.raised(bits).array for part in parts], axis), bits, parts[0].ring)


def broadcast_to(x, shape):
    """Broadcast an array or `Fixed` numbers as jnp.broadcast_to does. Free."""
    if not isinstance(x, Fixed):
        return jnp.broadcast_to(x, shape)
    return x.with_array((spread if x.ring else jnp.broadcast_to)(x.array, tuple(shape)))


def swapaxes(x, first: int, second: int):
    """Swap two axes of an array or of `Fixed` numbers as jnp.swapaxes does. Free."""
    if not isinstance(x, Fixed):
        return jnp.swapaxes(x, first, second)
    return x.with_array(jnp.swapaxes(x.array, first, second))


def padded(x, count: int):
    """Return an array or `Fixed` numbers with `count` zeros more at the end of the last axis."""
    if not isinstance(x, Fixed):
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, count)])
    return x.with_array(jnp.pad(x.array, [(0, 0)] * (x.ndim - 1) + [(0, count)]))


def placed(x, new, slot):
    """Return x [..., N] with new [..., 1] at the place where slot [N], which is public, is 1 and not 0; x is 0 there. Free."""
    if isinstance(x, Fixed):
        return x + new * slot.reshape(*[1] * (x.ndim - 1), -1)
    return jnp.where(slot > jnp.float32(0.5), new, x)


def picked(x, slot):
    """Return the entry [...] of x [..., N] at the place where slot [N], which is public, is 1 and not 0. Free."""
    if isinstance(x, Fixed):
        return sums(x * slot.reshape(*[1] * (x.ndim - 1), -1), -1)
    return jnp.sum(jnp.where(slot > jnp.float32(0.5), x, jnp.zeros_like(x)), -1)


def constant(values, bits: int, like: Fixed) -> Fixed:
    """Return public numbers as `Fixed` numbers in the reading of others; those that are already stay as they are."""
    if isinstance(values, Fixed):
        return values
    words = np.round(np.asarray(values, np.float64) * 2.0**bits)
    array = words.astype(np.int32) if like.ring else (words * 2.0**-bits).astype(np.float32)
    return Fixed(jnp.asarray(array), bits, like.ring)


# SPU keeps broadcast and transposed arrays as views, and reads them number by number: an addition of a column takes longer
# than one of a whole array. A matrix product with public ones sends nothing and writes its result in order, and with it the
# addition takes less time than without ("layouts" in operations.json). SPU's compiler removes plainer copies, such as a
# reshape there and back.


def spread(array, shape: tuple[int, ...]):
    """Broadcast ring words as jnp.broadcast_to does, written out in memory where whole last axes are repeated. Free."""
    kept = len(shape)
    extents = (1,) * (len(shape) - array.ndim) + array.shape
    while kept and extents[kept - 1] == 1:
        kept -= 1
    repeats = math.prod(shape[kept:])
    if repeats < LEAST_REPEATS or math.prod(shape) < LEAST_NUMBERS:
        return jnp.broadcast_to(array, shape)
    rows = jnp.broadcast_to(array.reshape(extents[:kept]), shape[:kept])
    return _times_ones(rows, repeats).reshape(shape)


def written_out(x: Fixed) -> Fixed:
    """Return numbers that were transposed, on shares written out in memory in the order of their indices. Free."""
    if not x.ring or x.array.size < LEAST_NUMBERS:
        return x
    return x.with_array(_times_ones(x.array, 1).reshape(x.shape))


def _times_ones(array, count: int):
    """Return each number `count` times in a row, [N, count]."""
    ones = jnp.ones((1, count), array.dtype)
    return lax.dot_general(array.reshape(-1, 1), ones, (((1,), (0,)), ((), ())), preferred_element_type=array.dtype)


def public_like(x: Fixed, number: int) -> Fixed:
    """Return a public whole number in the shape of x, as shares of it. Free, where SPU would share it by a message."""
    # Added to x - x, as floats, for which the compiler must not replace the difference by a public zero.
    zero = Fixed.load(x.store() - x.store(), 0, x.ring)
    return zero.with_array(zero.array + jnp.asarray(number, zero.array.dtype))


def dot_general(first: Fixed, second: Fixed, dimension_numbers) -> Fixed:
    """Multiply as lax.dot_general does, not truncated. 3 messages, times the product of the batch dimensions."""
    kind = jnp.int32 if first.ring else jnp.float32
    array = lax.dot_general(first.array, second.array, dimension_numbers, preferred_element_type=kind)
    return Fixed(array, first.bits + second.bits, first.ring)


def dot_general_together(first: Fixed, second: Fixed, dimension_numbers) -> Fixed:
    """Multiply operands with two batch axes and two more as `dot_general` does; small ones on shares in 3 messages.

    SPU multiplies the matrices of a batch one after the other. Small ones are multiplied all with all here, as one product,
    of which the diagonal is the result: each message saved costs at most MOST_TOGETHER numbers more.
    """
    ((one,), (other,)), _ = dimension_numbers
    rows, columns = (x.shape[2 if axis == 3 else 3] for x, axis in ((first, one), (second, other)))
    batch = first.shape[:2]
    count = batch[0] * batch[1]
    if not first.ring or count == 1 or count * rows * columns > MOST_TOGETHER:
        return dot_general(first, second, dimension_numbers)
    left = first if one == 3 else swapaxes(first, 2, 3)
    right = second if other == 3 else swapaxes(second, 2, 3)
    inner = left.shape[3]
    both = dot_general(left.reshape(-1, inner), right.reshape(-1, inner), (((1,), (1,)), ((), ())))
    pairs = both.array.reshape(count, rows, count, columns)
    wanted = jnp.stack([pairs[index, :, index] for index in range(count)])
    return both.with_array(wanted.reshape(*batch, rows, columns))


def matmul(first: Fixed, second: Fixed) -> Fixed:
    """Return the product of two matrices, not truncated. 3 messages."""
    return dot_general(first, second, (((1,), (0,)), ((), ())))


def sums_of_squares(rows: Fixed) -> Fixed:
    """Return the sum of squares of each row of [R, N], [R], not truncated. 3 messages."""
    if not rows.ring:
        return Fixed(jnp.sum(rows.array * rows.array, axis=1), 2 * rows.bits, ring=False)
    # The diagonal of one matrix product, where a product for each row would cost messages for each.
    return dot_general(rows, rows, (((1,), (1,)), ((), ()))).reshape(-1)[:: rows.shape[0] + 1]


def sums(x: Fixed, axis: int, bits: int | None = None) -> Fixed:
    """Return the sum over an axis, which it no longer has, at `bits` fraction bits, or those of x. Free.

    Raises ValueError for fewer bits than x has.
    """
    axis %= x.ndim
    bits = x.bits if bits is None else bits
    # A product with ones: jnp.sum would have its initial zero shared first.
    one = Fixed(jnp.ones((x.shape[axis],), x.array.dtype), x.bits, x.ring).raised(bits)
    return Fixed(lax.dot_general(x.array, one.array, (((axis,), (0,)), ((), ()))), bits, x.ring)


def means(x: Fixed, axis: int) -> Fixed:
    """Return the mean over an axis, which it no longer has, at the fraction bits of x. 5 messages."""
    count = x.shape[axis]
    # The sum times a public 1/N to 16 significant bits: an error of 2^-17 of the mean, below half of the last of 10 bits
    # for means below 64.
    more = (count - 1).bit_length() + 16
    factor = np.int32(round(2**more / count)) if x.ring else np.float32(1 / count)
    return Fixed(sums(x, axis).array * factor, x.bits + more, x.ring).truncated(x.bits)
