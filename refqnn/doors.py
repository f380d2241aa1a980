"""The doors of an estimator: rows of raw features come in, labels or targets go out.

They hold everything that a model does around its integers, so that whoever has them (a client of an
encrypted circuit, a file, another runtime) gives the answers of `predict`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.errors import InvalidArgument, InvalidType, NotCovered, ShapeMismatch, mismatch
from refqnn.formats import IntFormat, as_array, as_integers, is_integer
from refqnn.quantizers import Dequantizer, FloatArray, ThresholdQuantizer, float_thresholds

__all__ = ["Comparisons", "Features", "Predictions"]


@dataclass(frozen=True, eq=False)
class Features(ThresholdQuantizer):
    """The input door: codes of raw features [n, features], one row of thresholds for each.

    Args:
        thresholds, format, axis: as for `ThresholdQuantizer`.
        names: of the features, or None.

    >>> from refqnn import IntFormat
    >>> door = Features([[0.5], [2e9]], IntFormat(1, signed=False), axis=1, names=("a", "b"))
    >>> door.quantize([[0.5, 1e9], [0.4, 3e9]]).tolist()
    [[1, 0], [0, 1]]
    """

    kind: ClassVar[str] = "Features"

    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.names is None:
            return
        if not all(isinstance(name, str) for name in self.names):
            raise InvalidType(mismatch("names", repr(self.names), "text"))
        if len(self.names) != self.width:
            expected = f"{self.width}, one for each feature"
            raise ShapeMismatch(mismatch("names", f"{len(self.names)} names", expected))

    @classmethod
    def of_function(
        cls,
        codes: Callable[[NDArray[np.float32]], NDArray[np.int64]],
        features: int,
        format: IntFormat,
        names: Iterable[str] | None = None,
    ) -> Features:
        """The door of any nondecreasing function of each feature, found with the function itself.

        Args:
            codes: of float32 rows [n, features].
            features: how many.
        """
        wanted = np.tile(np.arange(format.q_min + 1, format.q_max + 1), (features, 1))
        thresholds = float_thresholds(lambda columns: codes(columns.T).T, wanted)
        return cls(thresholds, format, axis=1, names=None if names is None else tuple(names))

    @property
    def width(self) -> int:
        """How many features a row has."""
        return len(self.thresholds)

    def quantize(self, x: ArrayLike) -> NDArray[np.int64]:
        """Codes [n, features] of a table: numbers, or a data frame with columns of these names.

        Numbers become float64 first and float32 then, as `predict` of the estimator has them.

        Raises: InvalidArgument for other columns, or the same in another order; and as
            `Quantizer.quantize`.
        """
        columns = getattr(x, "columns", None)
        if self.names is not None and columns is not None and tuple(columns) != self.names:
            raise InvalidArgument(mismatch("columns of x", list(columns), f"{list(self.names)}"))
        array = as_array(x, "x", "a table of numbers")
        if array.dtype.kind in "cmM":  # numpy would drop an imaginary part, or a unit of time
            raise InvalidType(mismatch("x", f"dtype {array.dtype}", "a table of numbers"))
        try:
            table = np.asarray(array, dtype=np.float64)
        except (TypeError, ValueError):
            raise InvalidType(mismatch("x", type(x).__name__, "a table of numbers")) from None
        return super().quantize(self._read(table))

    def _read(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """The column that each code is made of."""
        return table


@dataclass(frozen=True, eq=False)
class Comparisons(Features):
    """The input door of chosen comparisons: code j of a row is 1 where x[columns[j]] reaches
    thresholds[j].  Whoever quantizes knows which comparisons the network reads.

    Args:
        thresholds, format, axis, names: as for `Features`.
        columns: integers [codes], from 0 to n_features - 1: which feature each code is made of.
        n_features: how many features a row has.

    >>> from refqnn import IntFormat
    >>> bit = IntFormat(1, signed=False)
    >>> door = Comparisons([[0.5], [2.0], [9.0]], bit, axis=1, columns=[0, 0, 2], n_features=3)
    >>> door.quantize([[1.0, 0.0, 10.0]]).tolist()
    [[1, 0, 1]]
    """

    kind: ClassVar[str] = "Comparisons"

    columns: Any = ()
    n_features: int = 0

    def __post_init__(self) -> None:
        columns = np.array(as_integers(self.columns, "columns"))
        if not is_integer(self.n_features) or self.n_features < 1:
            raise InvalidArgument(mismatch("n_features", self.n_features, "an integer >= 1"))
        if columns.ndim != 1 or ((columns < 0) | (columns >= self.n_features)).any():
            got, expected = repr(self.columns), f"a row of integers below {self.n_features}"
            raise InvalidArgument(mismatch("columns", got, expected))
        super().__post_init__()
        if len(columns) != len(self.thresholds):
            expected = f"{len(self.thresholds)}, one for each row of thresholds"
            raise ShapeMismatch(mismatch("columns", f"{len(columns)} columns", expected))
        columns.flags.writeable = False
        object.__setattr__(self, "columns", columns)

    @property
    def width(self) -> int:
        return self.n_features

    def _read(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        if table.ndim != 2 or table.shape[1] != self.n_features:
            expected = f"[n, {self.n_features}], a column for each feature"
            raise ShapeMismatch(mismatch("x", f"shape {table.shape}", expected))
        return table[:, self.columns]


@dataclass(frozen=True, eq=False)
class Predictions(Dequantizer):
    """The output door: what the output integers [n, outputs] say.

    Args:
        scale, offset, precision: as for `Dequantizer`; with labels one of each, and scale > 0.
        labels: numbers, truth values or text, one for each output of a classifier; None: targets.
        flat: the one target of a row is given as [n], not as [n, 1].

    >>> Predictions(0.5, labels=["no", "yes"]).predict([[3, 4], [1, 1]]).tolist()
    ['yes', 'no']
    >>> Predictions(0.5, 100.0, flat=True).predict([[3], [-2]]).tolist()
    [101.5, 99.0]
    """

    kind: ClassVar[str] = "Predictions"

    labels: Any = None
    flat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels is None:
            return
        labels = np.array(self.labels)
        if labels.dtype.kind not in "biufU" or labels.ndim != 1:
            got = f"{labels.dtype} of shape {labels.shape}"
            raise InvalidType(mismatch("labels", got, "numbers, truth values or text, [outputs]"))
        if self.scale.ndim or self.offset.ndim or self.scale < 0:
            raise InvalidArgument(
                mismatch("scale", self.scale, "one positive number for all labels")
            )
        labels.flags.writeable = False
        object.__setattr__(self, "labels", labels)

    def predict(self, acc: ArrayLike) -> NDArray[Any]:
        """Labels [n]: of the largest integer, the first of equals; or targets [n] or [n, outputs].

        Raises: as `Dequantizer.dequantize`.
        """
        if self.labels is None:
            y = self.dequantize(acc)
            return y[:, 0] if self.flat else y
        integers = as_integers(acc, "acc")
        if integers.ndim != 2 or integers.shape[1] != len(self.labels):
            expected = f"[n, {len(self.labels)}], a label each"
            raise ShapeMismatch(mismatch("acc", f"shape {integers.shape}", expected))
        labels: NDArray[Any] = self.labels[integers.argmax(axis=1)]
        return labels

    def predict_proba(self, acc: ArrayLike) -> NDArray[np.float64]:
        """Probabilities [n, classes]: softmax of the dequantized outputs, in float64.

        Raises: NotCovered without labels; as `Dequantizer.dequantize`.
        """
        if self.labels is None:
            raise NotCovered("predict_proba: these outputs are targets, not classes")
        return softmax(self.dequantize(acc))


def softmax(logits: FloatArray) -> NDArray[np.float64]:
    """exp(z) / sum of exp(z) along each row, in float64.

    >>> softmax(np.array([[0.0, 0.0]])).tolist()
    [[0.5, 0.5]]
    """
    z = logits.astype(np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = e / e.sum(axis=1, keepdims=True)
    return probabilities
