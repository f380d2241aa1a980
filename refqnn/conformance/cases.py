"""The old path of `refqnn.conformance.making.cases`."""

from refqnn.conformance.making.cases import *  # noqa: F403
