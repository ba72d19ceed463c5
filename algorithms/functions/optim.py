"""Optimisers on one flat tensor, the gradient step, and linear schedules.

An update is a few in-place operations, independent of the number of parameters. torch.optim imports torch's compiler
with its first optimiser, which would add a second to the start of every run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync


class Flat(NamedTuple):
    """All parameters of a module, and their gradient, as one vector each; the module's own are views of them."""

    param: Tensor  # [P]
    grad: Tensor  # [P]


def flatten(module: nn.Module) -> Flat:
    """Move a module's parameters into one flat tensor and give them gradients that are views of another.

    Names in `state_dict` stay, and `load_state_dict` writes through the views. Call it after `module.to(device)`.

    Raises:
        ValueError: if the parameters differ in dtype or device.
    """
    params = [param for param in module.parameters() if param.requires_grad]
    kinds = sorted({f"{param.dtype} on {param.device}" for param in params})
    if len(kinds) != 1:
        raise ValueError(f"flatten needs parameters of one dtype on one device, got {', '.join(kinds) or 'none'}")
    flat = torch.cat([param.detach().reshape(-1) for param in params])
    grad = torch.zeros_like(flat)
    sizes = [param.numel() for param in params]
    for param, values, slopes in zip(params, torch.split(flat, sizes), torch.split(grad, sizes), strict=True):
        param.data = values.view(param.shape)
        param.grad = slopes.view(param.shape)
    return Flat(flat, grad)


class Adam:
    """Adam, Kingma and Ba 2015. The default epsilon is that of PPO's authors; torch's is 1e-8."""

    def __init__(self, flat: Flat, eps: float = 1e-5, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.param, self.grad = flat
        self.eps, self.betas = eps, betas
        self.steps = 0
        self.mean = torch.zeros_like(self.param)  # [P] of gradients
        self.square = torch.zeros_like(self.param)  # [P] of squared gradients
        self._count = torch.zeros((), device=self.param.device)  # `steps`, as a tensor for the kernel

    def update(self, lr: float) -> None:
        """One step along the gradient, with step size `lr`: torch's fused kernel, one pass over everything."""
        self.steps += 1
        torch._fused_adam_(
            [self.param],
            [self.grad],
            [self.mean],
            [self.square],
            [],
            [self._count.fill_(self.steps)],
            lr=lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        self.mean.copy_(state["mean"])
        self.square.copy_(state["square"])


class RMSProp:
    """RMSProp, Hinton 2012, with epsilon outside the root. The defaults are those of A2C in Stable-Baselines3."""

    def __init__(self, flat: Flat, eps: float = 1e-5, decay: float = 0.99) -> None:
        self.param, self.grad = flat
        self.eps, self.decay = eps, decay
        self.square = torch.zeros_like(self.param)  # [P] of squared gradients

    def update(self, lr: float) -> None:
        """One step along the gradient, with step size `lr`."""
        self.square.mul_(self.decay).addcmul_(self.grad, self.grad, value=1 - self.decay)
        self.param.addcdiv_(self.grad, self.square.sqrt().add_(self.eps), value=-lr)

    def state_dict(self) -> dict[str, Any]:
        return {"square": self.square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.square.copy_(state["square"])


def make_optimizer(flat: Flat, config: Any) -> Adam | RMSProp:
    """The optimiser that an algorithm's settings name: `optimizer`, with `adam_eps`, `rms_eps` and `rms_alpha`."""
    if config.optimizer == "adam":
        return Adam(flat, config.adam_eps)
    return RMSProp(flat, config.rms_eps, config.rms_alpha)


def step(
    optimizer: Adam | RMSProp,
    loss: Tensor,
    lr: float,
    max_grad_norm: float,
    sync: GradientSync = SINGLE,
    rows: int | Tensor = 1,
    metrics: dict[str, Tensor] | None = None,
) -> Tensor:
    """Compute the gradient of the loss, average it over learners, clip it by its global norm, update the parameters.

    Args:
        loss:          []  its graph is freed.
        max_grad_norm: L2 norm over all parameters; 0 turns clipping off.
        sync:          averages the gradient and the metrics over the learners that share the update.
        rows:          number of rows that the loss is a mean of; or bool, True for each of these rows.
        metrics:       [] each, means over the same rows; replaced by those over the rows of all learners.

    Returns:
        [] the norm of the gradient before clipping.
    """
    grad = optimizer.grad
    grad.zero_()
    _backward(loss)
    sync.average(grad, rows, {} if metrics is None else metrics)
    norm: Tensor = torch.linalg.vector_norm(grad)
    on_cpu = grad.device.type == "cpu"  # where it costs nothing to look at a number
    if max_grad_norm > 0 and not (on_cpu and float(norm) + 1e-6 <= max_grad_norm):
        grad.mul_((norm + 1e-6).reciprocal_().mul_(max_grad_norm).clamp_(max=1.0))
    optimizer.update(lr)
    return norm


def _backward(loss: Tensor) -> None:
    """What `loss.backward()` does, in less time, for networks whose updates are as short as autograd's overhead.

    A loss with a known gradient (`losses`) of a network that is one node needs no engine: 7% of DQN's updates. Else
    the engine is called without the checks of `loss.backward()`: 5%.
    """
    node: Any = loss.grad_fn
    if getattr(getattr(node, "network", None), "ends_graph", False):
        with torch.no_grad():
            node.network.apply(node.grad)
    elif loss.ndim:  # one number in a tensor that is not a scalar; more raise
        loss.backward()  # type: ignore[no-untyped-call]
    else:
        Variable._execution_engine.run_backward(
            (loss,), (loss.new_ones(()),), False, False, (), allow_unreachable=True, accumulate_grad=True
        )


def linear(start: float, end: float | None, progress: float) -> float:
    """`start` at progress 0, `end` at progress 1, a straight line between, flat outside. No end: `start` always."""
    if end is None:
        return start
    share = min(max(progress, 0.0), 1.0)
    return start * (1.0 - share) + end * share  # in this form both ends are met exactly
