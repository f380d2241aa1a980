"""Accumulators in use, by name: `Accumulator.preset`.

Each says in words what the machine does and where that is written.  What is common to all: a lane
or register is described, not the lanes beside it; where sums wrap at one width from some stage on,
their order does not matter (they are congruent), so vector lanes that are added at the end count as
the same register.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

from refqnn.emulate import Accumulator, Stage
from refqnn.errors import InvalidArgument, mismatch

__all__ = ["PRESETS", "preset"]


def int32() -> Accumulator:
    """Every product into one 32-bit register, wrapping: plain C on int32_t (as compiled), and what
    ONNX MatMulInteger and ConvInteger compute."""
    return Accumulator([Stage(32)])


def x86_maddubs() -> Accumulator:
    """VPMADDUBSW, VPMADDWD with ones, VPADDD: two products of unsigned and signed bytes make an
    int16 that *saturates*, two of these an int32, and int32 sums wrap.

    Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, PMADDUBSW and PMADDWD;
    int8 kernels for SSSE3, AVX2 and AVX-512 without VNNI.  Weights of seven bits cannot saturate:
    2 * 255 * 64 < 2**15.
    """
    pairs = Stage(16, group=2, overflow="saturate", when="end")
    return Accumulator([pairs, Stage(32, group=2, when="end"), Stage(32)], bias="first")


def x86_vnni() -> Accumulator:
    """VPDPBUSD: four products of unsigned and signed bytes are added to an int32, which wraps.

    Software Developer's Manual, volume 2, VPDPBUSD.
    """
    return Accumulator([Stage(32, group=4, when="end"), Stage(32)], bias="first")


def x86_vnni_saturating() -> Accumulator:
    """VPDPBUSDS: four products are added to an int32 in one sum, which saturates.

    Software Developer's Manual, volume 2, VPDPBUSDS.  For one lane; the lanes' sum wraps.
    """
    fours = Stage(32, group=4, when="end")  # at most 4 * 2**15: it always fits
    return Accumulator([fours, Stage(32, overflow="saturate")], bias="first")


def arm_smlad() -> Accumulator:
    """SMLAD: two products of int16 are added to an int32, which wraps (and sets the Q flag).

    Armv7-M Architecture Reference Manual, SMLAD; Armv8-M with the DSP extension.
    """
    return Accumulator([Stage(32, group=2, when="end"), Stage(32)], bias="first")


def arm_sdot() -> Accumulator:
    """SDOT, UDOT: four products of bytes are added to an int32 lane, which wraps.

    Arm Architecture Reference Manual for A-profile, SDOT (vector).
    """
    return Accumulator([Stage(32, group=4, when="end"), Stage(32)], bias="first")


def cmsis_nn_s8() -> Accumulator:
    """Convolutions and fully connected layers of int8: an int32 that begins with the bias and
    wraps; kernel positions outside, channels inside.

    CMSIS-NN, arm_nn_mat_mult_nt_t_s8, arm_nn_vec_mat_mult_t_s8.
    """
    return Accumulator([Stage(32)], "channels_last", "first")


def cmsis_nn_s16() -> Accumulator:
    """Activations of int16: int32 for 512 products by SMLAD, then int64, the bias at the end.

    CMSIS-NN, arm_nn_vec_mat_mult_t_s16 with the DSP extension (MAX_COL_COUNT).  The library keeps
    the *first* 512 in an int32 and adds all others to the int64 one by one; here all tiles of 512
    are int32, which is the same up to 512 products and more cautious behind them.
    """
    tiles = Stage(32, group=512)
    return Accumulator([tiles, Stage(64)], "channels_last", "last")


def finn(width: int, simd: int = 1) -> Accumulator:
    """A matrix-vector unit of FINN: `simd` products at a time into a register of the accumulator
    type, which wraps; channels inside, the bias in the thresholds behind it.

    finn-hlslib, mac.hpp and mvau.hpp: mac() adds `simd` products to a value of the accumulator
    type.  PE, the outputs at a time, changes nothing in a sum.
    """
    return Accumulator([Stage(width, group=simd), Stage(width)], "channels_last", "outside")


PRESETS: dict[str, Callable[..., Accumulator]] = {
    make.__name__: make
    for make in (
        *(int32, x86_maddubs, x86_vnni, x86_vnni_saturating),
        *(arm_smlad, arm_sdot, cmsis_nn_s8, cmsis_nn_s16, finn),
    )
}


def preset(name: str, **parameters: int) -> Accumulator:
    """See `Accumulator.preset`.

    >>> print(preset("finn", width=12, simd=4))
    4 -> int12, wrap at every step; all -> int12, wrap at every step; order channels_last; bias outside
    """  # noqa: E501
    if name not in PRESETS:
        raise InvalidArgument(mismatch("name", repr(name), f"one of {', '.join(PRESETS)}"))
    known = signature(PRESETS[name]).parameters
    needed = {key for key, value in known.items() if value.default is value.empty}
    if not needed <= set(parameters) <= set(known):
        raise InvalidArgument(mismatch("parameters", sorted(parameters), f"{list(known)}"))
    return PRESETS[name](**parameters)
