"""Matrix products of a learner's dense layers: by MKL or by oneDNN, depending on the processor and on their shapes.

torch contains both. It uses MKL for float32, which computes with half the width of the vector units of AMD's
processors with AVX-512. oneDNN uses the full width, and adds bias and activation to the result at once, but a call
takes 10 us longer. So oneDNN computes the large products on these processors, and MKL computes everything else.

The choice depends on the processor only, so a run has the same bits each time. It is a setting of the run, which a
resume keeps. Actors always use MKL: they have few rows, whose bits must not depend on their number.

With `--precision bfloat16` oneDNN rounds the factors of all products to bfloat16 and adds in float32, which processors
with AMX or AVX512-BF16 do in a third of the time.
"""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Library = Literal["mkl", "onednn", "bfloat16"]

LARGE = 2**20  # multiplications of a product from which oneDNN saves more than its call takes
FEW = 12  # outputs of a layer below which MKL's result depends on the alignment of rows, where it is slow
WIDE = 128  # columns of a layer's input from which its weight's gradient is worth the transposed copy that oneDNN needs

ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh_, "relu": torch.relu_}

MINUS_ONE = torch.tensor(-1.0)

_linear_pointwise = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # what torch.compile calls for a Linear
_library: Library = "mkl"


def slow_mkl() -> bool:
    """Whether torch's MKL is slow here: it is fast on Intel's processors only."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        with open("/proc/cpuinfo", "rb") as cpuinfo:
            return b"GenuineIntel" not in cpuinfo.read(4096)
    except OSError:
        return "GenuineIntel" not in platform.processor()


SLOW_MKL = slow_mkl()


@functools.cache
def has_onednn() -> bool:
    """Whether this torch can compute a layer by oneDNN."""
    if _linear_pointwise is None:
        return False
    try:
        one = torch.ones(1, 1)
        return bool(_onednn(one, one, one[0], "relu") == 2)
    except (RuntimeError, TypeError):  # built without oneDNN, or with another signature
        return False


@functools.cache
def has_bfloat16() -> bool:
    """Whether this processor multiplies numbers of bfloat16 faster than those of float32."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def fastest() -> Library:
    """The library for the large products of a learner on this processor."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "onednn" if SLOW_MKL and wide and has_onednn() else "mkl"


def use(library: Library) -> list[str]:
    """Let learners multiply by `library` from now on. If this machine cannot do that, MKL multiplies.

    Returns:
        A line for the user if MKL replaces `library`.
    """
    global _library
    possible = library == "mkl" or (has_onednn() if library == "onednn" else has_bfloat16())
    _library = library if possible else "mkl"
    if possible:
        return []
    return [
        f"this run has multiplied matrices with {library}, which this machine cannot do: MKL multiplies from now on, "
        "so the results are not those of an uninterrupted run"
    ]


@contextlib.contextmanager
def learning() -> Iterator[None]:
    """A block of a learner's updates. Actors in the same process and the user's program keep float32."""
    before = torch.get_float32_matmul_precision()
    if _library != "bfloat16" or before == "medium":
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def is_large(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN computes the product of x [..., a] and a weight with any of its dimensions equal to a."""
    if _library != "onednn" or x.dtype is not torch.float32 or x.device.type != "cpu":
        return False
    return x.shape[:-1].numel() * weight.numel() >= LARGE


def needs_alignment(weight: Tensor) -> bool:
    """Whether the product with a weight [out, in] depends on how the rows of x lie in memory: see `aligned`."""
    return SLOW_MKL and 1 < weight.shape[0] < FEW and weight.shape[1] % 4 != 0


def aligned(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in] with rows that begin at multiples of 16 bytes, if its product with weight [out, in] depends on that.

    x must be contiguous: a view of some columns can have rows at other places.

    On processors other than Intel's, MKL computes products with few columns from rows as they lie in memory. A row of
    five numbers would have other bits at another position in the batch: for another number of workers.
    """
    columns = x.shape[-1]
    if not needs_alignment(weight) or x.device.type != "cpu":
        return x
    return F.pad(x, (0, -columns % 4))[..., :columns]


def dense(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """activation(x weight^T + bias) [B, out] for x [B, in], weight [out, in] and bias [out]; without autograd."""
    if is_large(x, weight):
        return _onednn(x, weight, bias, activation)
    x = torch.addmm(bias, x, weight.t())
    if activation == "tanh":
        return fast_tanh_(x)
    return x if activation == "none" else x.relu_()


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a layer's input [B, in] from that of its output [B, out], for weight [out, in]."""
    return _onednn(grad, weight.t()) if is_large(grad, weight) else torch.mm(grad, weight)


def add_weight_gradient(into: Tensor, grad: Tensor, x: Tensor, thin: int) -> None:
    """Add grad^T x to `into` [out, in], for a layer with input x [B, in] and the gradient [B, out] of its output.

    Args:
        thin: columns of x below which MKL computes the transposed product, which is faster.
    """
    if x.shape[1] < thin:
        into.add_(torch.mm(x.t(), grad).t())
    elif x.shape[1] >= WIDE and is_large(x, into):
        into.add_(_onednn(grad.t(), x.t()))
    else:
        into.addmm_(grad.t(), x)


def batched_dense(
    x: Tensor, weight: Tensor, transposed: Tensor, bias: Tensor, activation: str, out: Tensor | None = None
) -> Tensor:
    """As `dense`, for n nets: x [n, B, in], weight [n, out, in] and its view `transposed`, bias [n, 1, out]."""
    if _library != "onednn" or not is_large(x[0], weight[0]):
        out = torch.baddbmm(bias, x, transposed) if out is None else torch.baddbmm(bias, x, transposed, out=out)
        return out if activation == "none" else ACTIVATE[activation](out)
    out = x.new_empty(*x.shape[:2], weight.shape[1]) if out is None else out
    for net in range(len(weight)):
        out[net] = _onednn(x[net], weight[net], bias[net, 0], activation)
    return out


def batched_input_gradient(grad: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """As `input_gradient`, for n nets, in `out` [n, B, in]."""
    if weight.shape[1] == 1:
        return torch.mul(grad, weight, out=out)
    if _library != "onednn" or not is_large(grad[0], weight[0]):
        return torch.bmm(grad, weight, out=out)
    for net in range(len(weight)):
        out[net] = _onednn(grad[net], weight[net].t())
    return out


def add_batched_weight_gradient(into: Tensor, grad: Tensor, x: Tensor, thin: int) -> None:
    """As `add_weight_gradient`, for n nets."""
    if x.shape[-1] < thin:
        into.add_(torch.bmm(x.mT, grad).mT)
    elif _library != "onednn" or x.shape[-1] < WIDE or not is_large(x[0], into[0]):
        into.baddbmm_(grad.mT, x)
    else:
        for net in range(len(into)):
            add_weight_gradient(into[net], grad[net], x[net], thin)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    assert _linear_pointwise is not None
    result: Tensor = _linear_pointwise(x, weight, bias, activation, [], "")
    return result


def fast_tanh_(x: Tensor) -> Tensor:
    """tanh in place, with an absolute error of 1e-7: a third of the time where torch's own, which is MKL's, is slow.

    For learners only: the last bit of an element depends on its position in the array, so actors use `torch.tanh`.
    """
    if not SLOW_MKL or x.device.type != "cpu":
        return x.tanh_()
    return torch.add(MINUS_ONE, x.add_(x).sigmoid_(), alpha=2, out=x)  # 2 sigmoid(2 x) - 1
