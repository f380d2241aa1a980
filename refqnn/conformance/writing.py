"""The old path of `refqnn.conformance.making.writing`."""

from refqnn.conformance.making.writing import *  # noqa: F403
