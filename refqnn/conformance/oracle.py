"""The old path of `refqnn.conformance.making.oracle`."""

from refqnn.conformance.making.oracle import *  # noqa: F403
