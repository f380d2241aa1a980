"""QuantConvNet under an accumulator budget: the certificate proves what the projection promises."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import refqnn
from refqnn import certify
from refqnn.brevitas import verify_against
from refqnn.training import loop
from refqnn.training.modules import QuantConvNet


@settings(max_examples=5, deadline=None)
@given(
    bits=st.integers(5, 9),
    n_input_bits=st.integers(1, 3),
    stride=st.integers(1, 2),
    n_w_bits=st.integers(2, 3),
    seed=st.integers(0, 2**16),
)
def test_budgets_of_a_convolutional_network_hold_and_change_nothing_else(
    bits: int, n_input_bits: int, stride: int, n_w_bits: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    X = rng.random((24, 1, 6, 6), dtype=np.float32)
    y = rng.integers(0, 3, 24)
    torch.manual_seed(seed)
    net = QuantConvNet(
        (1, 6, 6),
        3,
        channels=(6, 8),
        strides=(1, stride),
        n_input_bits=n_input_bits,
        n_w_bits=n_w_bits,
    )
    net.add_accumulator_budgets(bits)
    loop.fit(net, X, y, epochs=2, batch_size=8, on_epoch=lambda *_: net.shrink_to_budgets())
    net.make_pruning_permanent()

    network = refqnn.from_brevitas(net, X[:2])
    layers = certify(network, method="interval").layers
    assert len(layers) == 3
    assert all(layer.signed_bits <= bits for layer in layers.values())
    assert verify_against(net, network, X).exact
