"""The products of both libraries against float64, and which library is chosen."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import rltrain
from rltrain.algorithms.functions.optim import flatten
from rltrain.algorithms.networks import products
from rltrain.algorithms.networks.batched_mlp import BatchedMLP
from rltrain.algorithms.networks.mlp import MLP
from rltrain.algorithms.off_policy.continuous_policy import SquashedGaussian
from rltrain.config.run_config import RunConfig

CLOSE = {"atol": 2e-5, "rtol": 2e-5}
needs_onednn = pytest.mark.skipif(not products.has_onednn(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def _library(monkeypatch):
    before = products._library
    yield
    products.use(before)


@pytest.fixture(params=["mkl", pytest.param("onednn", marks=needs_onednn)])
def library(request, monkeypatch):
    """Both libraries, for products of every size; the calls of oneDNN are counted."""
    monkeypatch.setattr(products, "LARGE", 1)
    monkeypatch.setattr(products, "WIDE", 20)
    calls, function = [], products._linear_pointwise
    monkeypatch.setattr(products, "_linear_pointwise", lambda *x: (calls.append(x), function(*x))[1])
    products.use(request.param)
    yield request.param
    assert bool(calls) == (request.param == "onednn")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("activation", ["none", "tanh", "relu"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(7, 3, 5), (64, 40, 33), (1, 17, 1)])
def test_each_product_is_that_of_float64(library, rows, inputs, outputs, activation):
    x, weight, bias, grad = normal(rows, inputs), normal(outputs, inputs), normal(outputs), normal(rows, outputs)
    exact = F.linear(x.double(), weight.double(), bias.double())
    exact = {"none": exact, "tanh": exact.tanh(), "relu": exact.relu()}[activation]
    assert_close(products.dense(x, weight, bias, activation), exact.float(), **CLOSE)
    assert_close(products.input_gradient(grad, weight), (grad.double() @ weight.double()).float(), **CLOSE)
    into = normal(outputs, inputs, seed=5)
    expected = (into.double() + grad.double().t() @ x.double()).float()
    products.add_weight_gradient(into, grad, x, thin=16)
    assert_close(into, expected, **CLOSE)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("nets", [0, 1, 3])
def test_a_network_and_its_gradients_are_those_of_float64(library, nets, activation):
    """nets 0: an MLP."""
    rng = torch.Generator().manual_seed(1)
    if nets:
        net = BatchedMLP(4, (40, 24), 2, nets, activation, rng)
    else:
        net = MLP(4, (40, 24), 2, activation, generator=rng)
    exact = copy.deepcopy(net).double()
    x, others = normal(9, 4), normal(9, 4, seed=3).requires_grad_()
    shapes = [net(x).shape]
    slope = normal(*shapes[0], seed=7)
    gradients = []
    for module, dtype in ((net, torch.float32), (exact, torch.float64)):
        flat = flatten(module)
        module(x.to(dtype)).backward(slope.to(dtype))
        gradients.append(flat.grad.float())
        if nets:
            inputs = others.detach().to(dtype).requires_grad_()
            module(inputs, frozen=True).backward(slope.to(dtype))
            gradients.append(inputs.grad.float())
    with torch.no_grad():
        assert_close(net(x), exact(x.double()).float(), **CLOSE)
    half = len(gradients) // 2
    for ours, theirs in zip(gradients[:half], gradients[half:], strict=True):
        assert_close(ours, theirs, **CLOSE)


@needs_onednn
def test_actors_and_small_products_use_mkl(monkeypatch):
    """The bits of an actor's row must not depend on the number of rows."""
    net = MLP(3, (8,), 2)
    x = normal(16, 3)
    products.use("onednn")
    monkeypatch.setattr(products, "_linear_pointwise", None)  # to call it would raise
    with torch.no_grad():
        net(x)
    monkeypatch.setattr(products, "LARGE", 1)
    with torch.inference_mode():
        net(x)
    with torch.no_grad(), pytest.raises(AssertionError):
        net(x)


@needs_onednn
def test_other_numbers_than_float32_use_mkl():
    products.use("onednn")
    assert products.is_large(torch.zeros(2, 600, 100), torch.zeros(10, 100))
    assert not products.is_large(torch.zeros(2, 600, 100).double(), torch.zeros(10, 100).double())
    assert not products.is_large(torch.zeros(1000, 100, device="meta"), torch.zeros(100, 100, device="meta"))


@pytest.mark.parametrize(
    ("slow", "processor", "op", "expected"),
    [
        (True, "AVX512", True, "onednn"),  # AMD since Zen 4
        (False, "AVX512", True, "mkl"),
        (True, "AVX2", True, "mkl"),
        (True, "AVX512", False, "mkl"),
    ],
)
def test_the_choice_depends_on_the_processor(monkeypatch, slow, processor, op, expected):
    monkeypatch.setattr(products, "SLOW_MKL", slow)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    monkeypatch.setattr(products, "has_onednn", lambda: op)
    assert products.fastest() == expected


def _fails(*_):
    raise RuntimeError("mkldnn is not available")


@pytest.mark.parametrize("function", [None, _fails, lambda x: x])
def test_a_torch_without_the_function_computes_the_same_by_mkl(monkeypatch, function):
    monkeypatch.setattr(products, "_linear_pointwise", function)
    monkeypatch.setattr(products, "LARGE", 1)
    products.has_onednn.cache_clear()
    try:
        (line,) = products.use("onednn")
        assert "multiplied matrices with onednn, which this machine cannot do: MKL multiplies from now on" in line
        x, weight, bias = normal(6, 20), normal(4, 20), normal(4)
        assert torch.equal(products.dense(x, weight, bias, "none"), torch.addmm(bias, x, weight.t()))
    finally:
        products.has_onednn.cache_clear()


@pytest.mark.skipif(not products.has_bfloat16(), reason="this processor has no bfloat16")
def test_bfloat16_rounds_the_factors_in_a_learners_updates_only(tmp_path, monkeypatch):
    """Not where the policy acts in the same process, nor in the user's program."""
    acted, act = set(), SquashedGaussian.act
    precision = torch.get_float32_matmul_precision
    monkeypatch.setattr(SquashedGaussian, "act", lambda *x: (acted.add(precision()), act(*x))[1])
    x, y = normal(64, 64), normal(64, 64, seed=1)
    exact = x.double() @ y.double()
    products.use("bfloat16")
    with products.learning():
        rounded = x @ y
    assert 1e-3 < (rounded - exact).abs().max() < 0.3
    assert_close(x @ y, exact.float(), **CLOSE)

    given = {"algo": "sac", "env": "Pendulum-v1", "workers": 0, "warmup": 20, "batch": 16, "widths": (32, 32)}
    given |= {"eval_every": 0, "quiet": True, "checkpoint_every": 40, "out": str(tmp_path), "preset": "none"}
    runs = {p: rltrain.train(**given, steps=60, precision=p) for p in ("float32", "bfloat16")}
    assert runs["float32"].fingerprint != runs["bfloat16"].fingerprint
    assert acted == {precision()} == {"highest"}
    half = rltrain.train(**given, steps=40, precision="bfloat16")
    assert rltrain.train(resume=str(half.run), steps=60).fingerprint == runs["bfloat16"].fingerprint
    for run, library in (("float32", products.fastest()), ("bfloat16", "bfloat16")):
        assert json.loads((runs[run].run / "run.json").read_text())["config"]["products"] == library


def test_without_the_units_precision_bfloat16_is_float32_with_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(products, "has_bfloat16", lambda: False)
    given = {"algo": "sac", "env": "probe:box", "workers": 0, "warmup": 20, "batch": 16, "widths": (8,), "steps": 40}
    given |= {"eval_every": 0, "checkpoint_every": 0, "out": str(tmp_path), "preset": "none"}
    fingerprints = [rltrain.train(**given, precision=p).fingerprint for p in ("float32", "bfloat16")]
    assert fingerprints[0] == fingerprints[1]
    assert "no units for it" in "".join(capsys.readouterr())


@needs_onednn
def test_a_run_saves_its_library_and_a_resume_repeats_it(tmp_path, monkeypatch):
    """The resumed half has the bits of the whole run, although the processor now seems to prefer the other library."""
    monkeypatch.setattr(products, "LARGE", 1)
    monkeypatch.setattr(products, "fastest", lambda: "mkl")
    given = {"algo": "sac", "env": "Pendulum-v1", "workers": 0, "warmup": 20, "batch": 16, "widths": (32, 32)}
    given |= {"eval_every": 0, "quiet": True, "checkpoint_every": 40, "out": str(tmp_path), "preset": "none"}
    fingerprints = [rltrain.train(**given, steps=60).fingerprint]
    monkeypatch.setattr(products, "fastest", lambda: "onednn")
    fingerprints.append(rltrain.train(**given, steps=60).fingerprint)
    half = rltrain.train(**given, steps=40)
    assert json.loads((half.run / "run.json").read_text())["config"]["products"] == "onednn"
    monkeypatch.setattr(products, "fastest", lambda: "mkl")
    assert rltrain.train(resume=str(half.run), steps=60).fingerprint == fingerprints[1]
    assert fingerprints[0] != fingerprints[1]


def test_a_run_of_an_older_version_keeps_mkl():
    data = RunConfig(algo="ppo", settings=rltrain.PPOConfig(), env="CartPole-v1").to_json()
    del data["products"]
    assert RunConfig.from_json(data).products == "mkl"


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("proc", [True, False])
def test_tanh_is_slow_where_mkl_is_and_the_processor_is_not_intels(monkeypatch, slow, proc):
    vendor = "AuthenticAMD" if slow else "GenuineIntel"

    def cpuinfo(path, mode):
        if not proc:
            raise FileNotFoundError(path)
        return io.BytesIO(b"vendor_id : " + vendor.encode() + b"\xae\n")

    monkeypatch.setattr("builtins.open", cpuinfo)
    monkeypatch.setattr(products.platform, "processor", lambda: f"Family 6, {vendor}")
    for mkl in (True, False):
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda mkl=mkl: mkl)
        found = products.slow_mkl()
        assert found == (mkl and slow)


@pytest.mark.parametrize("slow", [True, False])
def test_the_quicker_tanh_is_tanh(monkeypatch, slow):
    monkeypatch.setattr(products, "SLOW_MKL", slow)
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([0.0, -0.0, 1e-20, 100.0, -100.0, 1e30, -1e30])])

    torch.testing.assert_close(products.fast_tanh_(x.clone()), torch.tanh(x.double()).float(), atol=2e-7, rtol=0)
    assert torch.isnan(products.fast_tanh_(torch.tensor([float("nan")]))).all()
