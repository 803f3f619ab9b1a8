"""What the floating-point rows do beside rounding arithmetic, by integer operations, alike in every reading.

Unprivileged manual, "F" and "D" extensions. A format is told by a word's width: 32 is single, 64 double. The
`magnitude` of a number is its bits without the sign; magnitudes are ordered as the numbers are, then
infinity, then the NaNs. Flags are 5-bit words, raised once. The rounding mode is asked for before anything
else, also where it changes nothing: a reserved one is illegal.
"""

from __future__ import annotations

from ringfence.isa.effects import Float
from ringfence.isa.ieee754 import FORMATS, NV, NX, RMM, RNE, RUP, Format
from ringfence.word import Int, Word, cat, clz, low, select, sext, zext

_ONES = Int(0xFFFFFFFF, 32)
_TOP = 1 << 63


def box(single: Word) -> Word:
    """A single in a 64-bit register ("NaN boxing": the upper half is ones)."""
    return cat(_ONES, single)


def unbox(register: Word) -> Word:
    """The single in a 64-bit register; the canonical NaN where it is not properly boxed."""
    return select(register >= _ONES.value << 32, low(register, 32), FORMATS[32].nan)


def _format(a: Word) -> Format:
    return FORMATS[a.width]


def _magnitude(a: Word) -> Word:
    return a & ~_format(a).sign


def _negative(a: Word) -> Word:
    return a.s < 0


def _is_nan(a: Word) -> Word:
    return _magnitude(a) > _format(a).infinity


def _is_signaling(a: Word) -> Word:
    return _is_nan(a) & (a & _format(a).quiet == 0)


def _flags(condition: Word, flags: int) -> Word:
    return select(condition, Int(flags, 5), 0)


def negate(a: Word) -> Word:
    return a ^ _format(a).sign


def inject(a: Word, sign: Word) -> Word:
    """`a` with the sign of `sign`."""
    return _magnitude(a) | sign & _format(a).sign


def inject_negated(a: Word, sign: Word) -> Word:
    """`a` with the opposite of the sign of `sign`."""
    return inject(a, ~sign)


def inject_xor(a: Word, sign: Word) -> Word:
    """`a`, its sign flipped where `sign` is negative."""
    return a ^ sign & _format(a).sign


def classify(a: Word) -> Word:
    """fclass: one of bits 0 to 9 for -inf -normal -subnormal -0 +0 +subnormal +normal +inf sNaN qNaN."""
    fmt, magnitude = _format(a), _magnitude(a)
    rank = zext(magnitude != 0) + zext(magnitude >= 1 << fmt.fraction) + zext(magnitude >= fmt.infinity)
    place = select(_negative(a), Int(3) - rank, rank + 4)
    place = select(_is_nan(a), zext(a & fmt.quiet != 0) + 8, place)
    return Int(1) << place


def _order(a: Word) -> Word:
    """A word whose signed order is the order of the numbers, the zeros being equal."""
    magnitude = _magnitude(a)
    return select(_negative(a), -magnitude, magnitude)


def equal(f: Float, a: Word, b: Word) -> Word:
    """feq, the quiet comparison."""
    f.raise_flags(_flags(_is_signaling(a) | _is_signaling(b), NV))
    return zext((_order(a) == _order(b)) & ~(_is_nan(a) | _is_nan(b)))


def less(f: Float, a: Word, b: Word) -> Word:
    """flt, signaling."""
    unordered = _is_nan(a) | _is_nan(b)
    f.raise_flags(_flags(unordered, NV))
    return zext((_order(a).s < _order(b).s) & ~unordered)


def less_or_equal(f: Float, a: Word, b: Word) -> Word:
    """fle, signaling."""
    unordered = _is_nan(a) | _is_nan(b)
    f.raise_flags(_flags(unordered, NV))
    return zext((_order(a).s <= _order(b).s) & ~unordered)


def _extreme(f: Float, a: Word, b: Word, chosen: Word) -> Word:
    """`chosen` of two numbers; the number beside a NaN; the canonical NaN of two."""
    f.raise_flags(_flags(_is_signaling(a) | _is_signaling(b), NV))
    beside_a = select(_is_nan(b), _format(b).nan, b)
    return select(_is_nan(a), beside_a, select(_is_nan(b), a, chosen))


def _before(a: Word, b: Word) -> Word:
    """Whether a number is less than another, -0 than +0."""
    order_a, order_b = _order(a), _order(b)
    return (order_a.s < order_b.s) | ((order_a == order_b) & _negative(a))


def minimum(f: Float, a: Word, b: Word) -> Word:
    """fmin: minimumNumber of IEEE 754-2019."""
    return _extreme(f, a, b, select(_before(a, b), a, b))


def maximum(f: Float, a: Word, b: Word) -> Word:
    """fmax: maximumNumber of IEEE 754-2019."""
    return _extreme(f, a, b, select(_before(a, b), b, a))


def widen(f: Float, a: Word, rm: Word) -> Word:
    """A single as a double, exactly."""
    f.mode(rm)
    single, double = FORMATS[32], FORMATS[64]
    magnitude = zext(_magnitude(a))
    # A subnormal's leading one moves to a normal number's hidden one, and adds 1 to the exponent's field.
    shift = select(magnitude < 1 << single.fraction, clz(magnitude) - 11, 29)
    scaled = (magnitude << shift) + ((Int(single.least - double.least) - shift) << double.fraction)
    special = select(magnitude == single.infinity, Int(double.infinity), double.nan)
    finite = select(magnitude == 0, magnitude, scaled)
    sign = zext(a & single.sign) << 32
    f.raise_flags(_flags(_is_signaling(a), NV))
    wide = select(magnitude < single.infinity, finite, special)
    return select(magnitude > single.infinity, wide, wide | sign)


def _bias(mode: Word, negative: Word, odd: Word, dropped: int, width: int) -> Word:
    """What to add to `dropped` bits so that the carry out of them rounds. `odd` is the lowest bit kept."""
    half = 1 << (dropped - 1)
    # Rounding away from zero: down for a negative number, up for a positive one; RUP is RDN + 1.
    away = mode == Int(RUP, 3) - zext(negative, 3)
    directed = select(away, Int((1 << dropped) - 1, width), 0)
    nearest = select(mode == RNE, zext(odd, width) + (half - 1), directed)
    return select(mode == RMM, Int(half, width), nearest)


def _to_integer(f: Float, a: Word, rm: Word, width: int, signed: bool) -> Word:
    mode = f.mode(rm)
    fmt, magnitude = _format(a), _magnitude(a)
    # `up` is the number of bits before the binary point. Where it is negative the number is below one half,
    # and a sticky bit stands for it.
    up = zext(magnitude >> fmt.fraction) + (fmt.least + fmt.fraction)
    nonzero = magnitude != 0
    left = zext(magnitude) << (63 - fmt.fraction) | _TOP
    tiny = up.s < 0
    significand = select(tiny, zext(nonzero), left)
    fixed = zext(significand, 128) << zext(select(tiny, 0, up & 127), 128)
    inexact = low(fixed, 64) != 0
    negative = _negative(a) & (magnitude <= fmt.infinity)
    whole = (fixed + _bias(mode, negative, fixed.bit(64), 64, 128)).bits(127, 64)
    if signed:
        limit = zext(negative) + ((1 << (width - 1)) - 1)
    else:
        limit = select(negative, Int(0), (1 << width) - 1)
    invalid = (up.s > 64) | (whole > limit)
    f.raise_flags(select(invalid, Int(NV, 5), _flags(inexact, NX)))
    result = select(invalid, limit, whole)
    if signed:
        result = select(negative, -result, result)
    return sext(low(result, width))


def _from_integer(f: Float, a: Word, rm: Word, format_width: int, signed: bool) -> Word:
    mode = f.mode(rm)
    fmt = FORMATS[format_width]
    negative = _negative(a) if signed else Int(0, 1)
    extended = sext(a) if signed else zext(a)
    magnitude = select(negative, -extended, extended)
    zeros = clz(magnitude)
    left = magnitude << (zeros & 63)
    dropped = 63 - fmt.fraction
    # The leading one adds 1 to the exponent's field, and so does a carry out of rounding.
    exponent = Int(63 - fmt.least - fmt.fraction) - zeros
    result = (exponent << fmt.fraction) + (left >> dropped)
    if a.width > fmt.fraction + 1:
        rest = left & ((1 << dropped) - 1)
        result += (rest + _bias(mode, negative, left.bit(dropped), dropped, 64)) >> dropped
        f.raise_flags(_flags(rest != 0, NX))
    result = low(select(magnitude == 0, 0, result), format_width)
    return result | zext(negative, format_width) << (format_width - 1) if signed else result


def to_signed(f: Float, a: Word, rm: Word, width: int) -> Word:
    """fcvt to a signed integer of 32 or 64 bits, saturated, then sign-extended to 64."""
    return _to_integer(f, a, rm, width, signed=True)


def to_unsigned(f: Float, a: Word, rm: Word, width: int) -> Word:
    """fcvt to an unsigned integer of 32 or 64 bits, saturated, then sign-extended to 64."""
    return _to_integer(f, a, rm, width, signed=False)


def from_signed(f: Float, a: Word, rm: Word, width: int) -> Word:
    """fcvt of a signed integer word of 32 or 64 bits to the format of that width."""
    return _from_integer(f, a, rm, width, signed=True)


def from_unsigned(f: Float, a: Word, rm: Word, width: int) -> Word:
    """fcvt of an unsigned integer word of 32 or 64 bits to the format of that width."""
    return _from_integer(f, a, rm, width, signed=False)
