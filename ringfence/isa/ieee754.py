"""IEEE 754 arithmetic on Python ints: the definition that every other reading is held to.

A number is the bits of its interchange format (IEEE 754-2019, 3.4). An operation takes the format of its
operands, their bits and a rounding mode, and gives (bits, flags). Finite operands become (sign, exponent,
significand), meaning (-1)**sign * significand * 2**exponent; the exact result, or one with a sticky bit, goes
through `round_pack`. What the standard leaves open is as in the unprivileged manual, "F" extension: NaN
results are canonical, tininess is detected after rounding, and fma of infinity and zero is invalid even where
the addend is a quiet NaN.
"""

from __future__ import annotations

from math import isqrt

RNE, RTZ, RDN, RUP, RMM = range(5)
NX, UF, OF, DZ, NV = (1 << n for n in range(5))

Result = tuple[int, int]
Finite = tuple[int, int, int]


class Format:
    """A binary interchange format: sign, exponent and `fraction` bits of the significand, `width` in all."""

    __slots__ = ("fraction", "infinity", "least", "nan", "one", "quiet", "sign", "width")

    def __init__(self, width: int, fraction: int) -> None:
        bias = (1 << (width - fraction - 2)) - 1
        self.width = width
        self.fraction = fraction
        self.sign = 1 << (width - 1)
        self.quiet = 1 << (fraction - 1)
        self.infinity = self.sign - (1 << fraction)
        self.nan = self.infinity | self.quiet
        self.one = bias << fraction
        self.least = 1 - bias - fraction
        """The exponent of the smallest subnormal."""

    def is_nan(self, a: int) -> bool:
        return a & ~self.sign > self.infinity

    def is_infinite(self, a: int) -> bool:
        return a & ~self.sign == self.infinity

    def is_zero(self, a: int) -> bool:
        return not a & ~self.sign

    def is_negative(self, a: int) -> bool:
        return bool(a & self.sign)

    def unpack(self, a: int) -> Finite:
        exponent = (a & ~self.sign) >> self.fraction
        significand = a & (1 << self.fraction) - 1
        if exponent:
            significand |= 1 << self.fraction
            exponent -= 1
        return a >> (self.width - 1), exponent + self.least, significand


BINARY32 = Format(32, 23)
BINARY64 = Format(64, 52)
FORMATS = {32: BINARY32, 64: BINARY64}


def round_shift(sign: int, significand: int, shift: int, mode: int) -> tuple[int, bool]:
    """significand / 2**shift as an integer, and whether it is inexact."""
    if shift <= 0:
        return significand << -shift, False
    whole = significand >> shift
    rest = significand & (1 << shift) - 1
    half = 1 << (shift - 1)
    if mode == RNE:
        up = rest > half or (rest == half and whole & 1)
    elif mode == RMM:
        up = rest >= half
    else:
        up = rest and mode == (RDN if sign else RUP)
    return whole + bool(up), rest != 0


def round_pack(fmt: Format, sign: int, exponent: int, significand: int, mode: int) -> Result:
    """The number in the format, rounded. What lies below two bits past the precision may be a sticky bit."""
    excess = significand.bit_length() - (fmt.fraction + 1)
    shift = max(excess, fmt.least - exponent)
    whole, inexact = round_shift(sign, significand, shift, mode)
    # A normal significand's leading bit adds 1 to the exponent's field; so does a carry out of rounding.
    bits = (exponent + shift - fmt.least << fmt.fraction) + whole if whole else 0
    negative = fmt.sign if sign else 0
    if bits >= fmt.infinity:
        reached = mode in (RNE, RMM, RDN if sign else RUP)
        return negative | fmt.infinity - (not reached), OF | NX
    if not inexact:
        return negative | bits, 0
    if shift == excess:
        return negative | bits, NX
    # Tiny unless rounding with an unbounded exponent reaches the smallest normal number.
    unbounded, _ = round_shift(sign, significand, excess, mode)
    normal = exponent + excess + unbounded.bit_length() > fmt.least + fmt.fraction
    return negative | bits, NX if normal else UF | NX


def _nan(fmt: Format, *operands: int) -> Result | None:
    """The result where an operand is a NaN."""
    nans = [a for a in operands if fmt.is_nan(a)]
    if not nans:
        return None
    return fmt.nan, 0 if all(a & fmt.quiet for a in nans) else NV


def fma(fmt: Format, a: int, b: int, c: int, mode: int) -> Result:
    """a * b + c, rounded once."""
    infinite = fmt.is_infinite(a) or fmt.is_infinite(b)
    if infinite and (fmt.is_zero(a) or fmt.is_zero(b)):
        return fmt.nan, NV
    if (nan := _nan(fmt, a, b, c)) is not None:
        return nan
    negative = (a ^ b) & fmt.sign
    if infinite:
        if fmt.is_infinite(c) and c & fmt.sign != negative:
            return fmt.nan, NV
        return negative | fmt.infinity, 0
    if fmt.is_infinite(c):
        return c, 0
    sign_a, exponent_a, significand_a = fmt.unpack(a)
    sign_b, exponent_b, significand_b = fmt.unpack(b)
    sign_c, exponent_c, significand_c = fmt.unpack(c)
    sign = sign_a ^ sign_b
    exponent = min(exponent_a + exponent_b, exponent_c)
    product = significand_a * significand_b << (exponent_a + exponent_b - exponent)
    addend = significand_c << (exponent_c - exponent)
    total = (-product if sign else product) + (-addend if sign_c else addend)
    if total:
        return round_pack(fmt, int(total < 0), exponent, abs(total), mode)
    return (negative if sign == sign_c else fmt.sign if mode == RDN else 0), 0


def add(fmt: Format, a: int, b: int, mode: int) -> Result:
    return fma(fmt, a, fmt.one, b, mode)


def sub(fmt: Format, a: int, b: int, mode: int) -> Result:
    return fma(fmt, a, fmt.one, b ^ fmt.sign, mode)


def mul(fmt: Format, a: int, b: int, mode: int) -> Result:
    """The product plus a zero of its own sign."""
    return fma(fmt, a, b, (a ^ b) & fmt.sign, mode)


def div(fmt: Format, a: int, b: int, mode: int) -> Result:
    if (nan := _nan(fmt, a, b)) is not None:
        return nan
    negative = (a ^ b) & fmt.sign
    if fmt.is_infinite(a) or fmt.is_zero(b):
        if (fmt.is_infinite(a) and fmt.is_infinite(b)) or fmt.is_zero(a):
            return fmt.nan, NV
        return negative | fmt.infinity, 0 if fmt.is_infinite(a) else DZ
    if fmt.is_infinite(b) or fmt.is_zero(a):
        return negative, 0
    sign_a, exponent_a, significand_a = fmt.unpack(a)
    sign_b, exponent_b, significand_b = fmt.unpack(b)
    # Whatever the lengths, the quotient has two bits more than the precision.
    shift = fmt.fraction + 3 + significand_b.bit_length() - significand_a.bit_length()
    quotient, rest = divmod(significand_a << shift, significand_b)
    return round_pack(fmt, sign_a ^ sign_b, exponent_a - exponent_b - shift, quotient | (rest != 0), mode)


def sqrt(fmt: Format, a: int, mode: int) -> Result:
    if (nan := _nan(fmt, a)) is not None:
        return nan
    if fmt.is_zero(a):
        return a, 0
    if fmt.is_negative(a):
        return fmt.nan, NV
    if fmt.is_infinite(a):
        return a, 0
    _, exponent, significand = fmt.unpack(a)
    # Scaled, the exponent is even and the root two bits longer than the precision.
    shift = 2 * (fmt.fraction + 3) - significand.bit_length()
    shift += (exponent - shift) & 1
    significand <<= shift
    root = isqrt(significand)
    return round_pack(fmt, 0, (exponent - shift) // 2, root | (root * root != significand), mode)


def narrow(fmt: Format, a: int, mode: int) -> Result:
    """A number of the format as a binary32 one."""
    if (nan := _nan(fmt, a)) is not None:
        return BINARY32.nan, nan[1]
    negative = BINARY32.sign if fmt.is_negative(a) else 0
    if fmt.is_infinite(a):
        return negative | BINARY32.infinity, 0
    sign, exponent, significand = fmt.unpack(a)
    return round_pack(BINARY32, sign, exponent, significand, mode)
