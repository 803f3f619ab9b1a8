"""ieee754.py against exact rationals, rounded by search among a format's numbers, and against numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from ringfence.isa import ieee754
from ringfence.isa.ieee754 import (
    BINARY32,
    BINARY64,
    DZ,
    NV,
    NX,
    OF,
    RDN,
    RMM,
    RNE,
    RTZ,
    RUP,
    UF,
    Format,
    Result,
)

FORMATS = {"binary32": BINARY32, "binary64": BINARY64}
OPERANDS = {"add": 2, "sub": 2, "mul": 2, "div": 2, "sqrt": 1, "fma": 3}
MODES = st.sampled_from([RNE, RTZ, RDN, RUP, RMM])


@st.composite
def patterns(draw: st.DrawFn, fmt: Format, near: int | None = None) -> int:
    """Bits of a number; the exponent is at an edge, near that of 1 or of another number, or any."""
    top = fmt.infinity >> fmt.fraction
    if near is None:
        near = fmt.one >> fmt.fraction
    edges = st.sampled_from([0, 0, 1, 2, 3, fmt.fraction, fmt.fraction + 1, top - 2, top - 1, top])
    around = st.integers(near - fmt.fraction - 3, near + fmt.fraction + 3)
    exponent = min(max(draw(edges | around | st.integers(0, top)), 0), top)
    ones = (1 << fmt.fraction) - 1
    fractions = st.sampled_from([0, 1, 2, ones, ones - 1, fmt.quiet, fmt.quiet + 1, fmt.quiet - 1])
    short = st.builds(lambda n, s: n << s & ones, st.integers(0, 15), st.integers(0, fmt.fraction))
    fraction = draw(fractions | short | st.integers(0, ones))
    return draw(st.sampled_from([0, fmt.sign])) | exponent << fmt.fraction | fraction


@st.composite
def cases(draw: st.DrawFn, fmt: Format, operation: str) -> tuple[int, ...]:
    """Operands; those of a sum often cancel all but the last bits."""
    a = draw(patterns(fmt))
    if operation == "sqrt":
        return (a,)
    exponent = (a & fmt.infinity) >> fmt.fraction
    b = draw(patterns(fmt) | patterns(fmt, near=exponent))
    if operation != "fma":
        return a, b
    product, _ = ieee754.mul(fmt, a, b, RTZ)
    near = (product & fmt.infinity) >> fmt.fraction
    step = draw(st.integers(-2, 2))
    cancelling = min(max((product & ~fmt.sign) + step, 0), fmt.infinity) | (~product & fmt.sign)
    c = draw(st.just(cancelling) | patterns(fmt) | patterns(fmt, near=near))
    return a, b, c


def magnitude(fmt: Format, pattern: int) -> Fraction:
    """The value of a pattern without a sign; that of infinity is the number that would follow the largest."""
    exponent, fraction = divmod(pattern, 1 << fmt.fraction)
    bias = fmt.one >> fmt.fraction
    scaled = Fraction(fraction, 1 << fmt.fraction) + (1 if exponent else 0)
    return scaled * Fraction(2) ** (max(exponent, 1) - bias)


def value(fmt: Format, bits: int) -> Fraction:
    return magnitude(fmt, bits & ~fmt.sign) * (-1 if bits & fmt.sign else 1)


Compare = Callable[[Fraction], int]
"""The sign of an exact result, taken as positive, less a candidate."""


def nearest_pattern(fmt: Format, negative: bool, compare: Compare, mode: int) -> tuple[int, bool]:
    """The pattern that a magnitude rounds to were exponents one step larger, and whether it is inexact."""
    least, most = 0, fmt.infinity
    while least < most:
        middle = (least + most + 1) // 2
        if compare(magnitude(fmt, middle)) >= 0:
            least = middle
        else:
            most = middle - 1
    if least == fmt.infinity or compare(magnitude(fmt, least)) == 0:
        return least, False
    half = compare((magnitude(fmt, least) + magnitude(fmt, least + 1)) / 2)
    up = {
        RNE: half > 0 or (half == 0 and least % 2 == 1),
        RTZ: False,
        RDN: negative,
        RUP: not negative,
        RMM: half >= 0,
    }
    return least + up[mode], True


def rounded(fmt: Format, negative: bool, compare: Compare, mode: int) -> Result:
    """IEEE 754-2019, 4.3 and 7.4 to 7.6, with tininess after rounding."""
    sign = fmt.sign if negative else 0
    pattern, inexact = nearest_pattern(fmt, negative, compare, mode)
    if pattern == fmt.infinity:
        infinite = mode in (RNE, RMM) or mode == (RDN if negative else RUP)
        return sign | (fmt.infinity if infinite else fmt.infinity - 1), OF | NX
    scale = fmt.fraction + 2
    normal = 1 << fmt.fraction
    scaled, _ = nearest_pattern(fmt, negative, lambda q: compare(q / 2**scale), mode)
    tiny = compare(magnitude(fmt, normal)) < 0 and scaled < normal + (scale << fmt.fraction)
    return sign | pattern, (NX if inexact else 0) | (UF if inexact and tiny else 0)


def shadow(fmt: Format, bits: int) -> float:
    """A float with the number's sign, and zero or infinite where the number is."""
    size = math.inf if bits & fmt.infinity == fmt.infinity else 1.0 if bits & ~fmt.sign else 0.0
    return math.copysign(size, -1.0 if bits & fmt.sign else 1.0)


def special(fmt: Format, operation: str, operands: tuple[int, ...]) -> Result | None:
    """The result where an operand is infinite or a NaN, or the result is not a finite number."""
    nans = [a for a in operands if a & ~fmt.sign > fmt.infinity]
    signaling = any(not a & fmt.quiet for a in nans)
    a, *others = (shadow(fmt, bits) for bits in operands)
    nan_operands = [bits in nans for bits in operands]
    if operation == "fma" and not any(nan_operands[:2]) and math.isnan(a * others[0]):
        return fmt.nan, NV
    if nans:
        return fmt.nan, NV if signaling else 0
    flags = 0
    if operation == "sqrt":
        result = a if a == 0 else math.nan if a < 0 else a
    elif operation == "div":
        sign = math.copysign(1, a) * math.copysign(1, others[0])
        if others[0]:
            result = a / others[0]
        else:
            result = sign * math.inf if a else math.nan
            flags = 0 if math.isinf(a) else DZ
    elif operation == "fma":
        result = a * others[0] + others[1]
    else:
        result = {"add": a.__add__, "sub": a.__sub__, "mul": a.__mul__}[operation](others[0])
    if math.isnan(result):
        return fmt.nan, NV
    if math.isinf(result):
        return fmt.infinity | (fmt.sign if result < 0 else 0), flags
    if operation == "sqrt" and a == 0:
        return operands[0], 0
    if operation == "div" and (math.isinf(others[0]) or a == 0):
        return (operands[0] ^ operands[1]) & fmt.sign, 0
    return None


def expected(fmt: Format, operation: str, operands: tuple[int, ...], mode: int) -> Result:
    if (found := special(fmt, operation, operands)) is not None:
        return found
    values = [value(fmt, bits) for bits in operands]
    signs = [bits & fmt.sign for bits in operands]
    if operation == "sqrt":
        return rounded(fmt, False, lambda q: (values[0] > q * q) - (values[0] < q * q), mode)
    if operation == "div":
        exact, zero_signs = values[0] / values[1], {signs[0] ^ signs[1]}
    elif operation == "mul":
        exact, zero_signs = values[0] * values[1], {signs[0] ^ signs[1]}
    elif operation == "add":
        exact, zero_signs = values[0] + values[1], set(signs)
    elif operation == "sub":
        exact, zero_signs = values[0] - values[1], {signs[0], signs[1] ^ fmt.sign}
    else:
        exact, zero_signs = values[0] * values[1] + values[2], {signs[0] ^ signs[1], signs[2]}
    if not exact:
        (sign,) = zero_signs if len(zero_signs) == 1 else (fmt.sign if mode == RDN else 0,)
        return sign, 0
    size = abs(exact)
    return rounded(fmt, exact < 0, lambda q: (size > q) - (size < q), mode)


@pytest.mark.parametrize("operation", OPERANDS)
@pytest.mark.parametrize("name", FORMATS)
def test_arithmetic_is_exact(name: str, operation: str) -> None:
    """Every operation gives the exact result rounded once, with the flags of that, in every rounding mode."""
    fmt = FORMATS[name]

    @settings(max_examples=200, deadline=None)
    @given(cases(fmt, operation), MODES)
    def check(operands: tuple[int, ...], mode: int) -> None:
        assert getattr(ieee754, operation)(fmt, *operands, mode) == expected(fmt, operation, operands, mode)

    check()


@pytest.mark.parametrize("name", FORMATS)
def test_tininess_is_detected_after_rounding(name: str) -> None:
    """Beside the smallest normal number UF is raised where unbounded rounding would stay below it."""
    fmt = FORMATS[name]
    normal = 1 << fmt.fraction
    for mode in (RNE, RTZ, RDN, RUP, RMM):
        for sign in (0, fmt.sign):
            for a in range(normal - 3, normal + 4):
                for b in range(fmt.one - 4, fmt.one + 4):
                    operands = (a | sign, b)
                    assert ieee754.mul(fmt, *operands, mode) == expected(fmt, "mul", operands, mode)


@settings(max_examples=200, deadline=None)
@given(st.data(), MODES)
def test_narrow_is_exact(data: st.DataObject, mode: int) -> None:
    """A double becomes the single it rounds to; NaNs become canonical; infinities and zeros keep signs."""
    single_exponents = st.integers(1023 - 152, 1023 + 130)
    a = data.draw(single_exponents.flatmap(lambda e: patterns(BINARY64, near=e)) | patterns(BINARY64))
    sign = a >> 63 << 31
    size = a & ~BINARY64.sign
    if size > BINARY64.infinity:
        wanted = BINARY32.nan, 0 if a & BINARY64.quiet else NV
    elif size == BINARY64.infinity:
        wanted = sign | BINARY32.infinity, 0
    else:
        exact = magnitude(BINARY64, size)
        wanted = rounded(BINARY32, bool(sign), lambda q: (exact > q) - (exact < q), mode)
    assert ieee754.narrow(BINARY64, a, mode) == wanted


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div", "sqrt"])
@pytest.mark.parametrize("name", FORMATS)
def test_arithmetic_agrees_with_the_host(name: str, operation: str) -> None:
    """To nearest, the host's unit gives the same bits, its NaNs made canonical."""
    numpy = pytest.importorskip("numpy", reason="the host's arithmetic is reached through numpy")
    fmt = FORMATS[name]
    bits_type, float_type = {32: ("uint32", "float32"), 64: ("uint64", "float64")}[fmt.width]
    function = {"add": "add", "sub": "subtract", "mul": "multiply", "div": "divide", "sqrt": "sqrt"}[operation]

    @settings(max_examples=50, deadline=None)
    @given(st.lists(cases(fmt, operation), min_size=1, max_size=40))
    def check(batch: list[tuple[int, ...]]) -> None:
        columns = [numpy.array(column, bits_type).view(float_type) for column in zip(*batch, strict=True)]
        with numpy.errstate(all="ignore"):
            results = getattr(numpy, function)(*columns).view(bits_type)
        for operands, result in zip(batch, results, strict=True):
            canonical = fmt.nan if int(result) & ~fmt.sign > fmt.infinity else int(result)
            assert getattr(ieee754, operation)(fmt, *operands, RNE)[0] == canonical

    check()
