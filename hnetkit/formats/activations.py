"""Activation names of hypernetworks, and why some that A1111 lists cannot be computed.

Source: AUTOMATIC1111 1.10: aliases, and every class of torch.nn.modules.activation in lower case.
"""

from __future__ import annotations

from hnetkit.errors import UnsupportedNetwork, did_you_mean
from hnetkit.text import shorten

NAMES = frozenset(
    {
        "celu",
        "elu",
        "gelu",
        "hardshrink",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "leakyrelu",
        "logsigmoid",
        "mish",
        "prelu",
        "relu",
        "relu6",
        "rrelu",
        "selu",
        "sigmoid",
        "silu",
        "softplus",
        "softshrink",
        "softsign",
        "swish",
        "tanh",
        "tanhshrink",
    }
)

_LONGEST = 40  # characters of a name

_REFUSED = {
    "glu": "it halves the width, so no layer structure fits it",
    "threshold": "its two numbers are not in the file",
    "multiheadattention": "it is not an activation, and its parameters are not in the file",
    "softmax": "it mixes the images of a batch",
    "softmin": "it mixes the images of a batch",
    "logsoftmax": "it mixes the images of a batch",
    "softmax2d": "it mixes the images of a batch",
}


def activation_name(stated: object) -> str | None:
    """Returns the activation's name in lower case, None for none (``None`` and ``"linear"``).

    Raises:
        UnsupportedNetwork: it cannot be computed, or is not known.
    """
    if stated is None:
        return None
    if not isinstance(stated, str) or len(stated) > _LONGEST:
        raise UnsupportedNetwork(f"the activation {shorten(stated)} is not known")
    name = stated.lower()
    if name in ("linear", "identity"):
        return None
    if name in _REFUSED:
        raise UnsupportedNetwork(f"the activation {name} cannot be computed faithfully: {_REFUSED[name]}")
    if name not in NAMES:
        near = did_you_mean(name, NAMES)
        suffix = f" (the nearest is {near})" if near else ""
        raise UnsupportedNetwork(f"the activation {name} is not known{suffix}")
    return name
