"""Where a run spends its time: `scripts/bench profile NAME` shows the shares, and the limit that the operations set.

The own time of each call is measured, by its path through the code. An estimate for a quiet machine is the number of
calls times their fastest fiftieth, so other programs change it less. The cost of measuring is subtracted.
The limit is the time of the arithmetic alone: the products at the speed of one of size 256, everything else at the
speed of reading and writing arrays of 256 kB. With actor processes this is the learner's process, which waits for them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from paired import commit, machine
from torch.utils._python_dispatch import TorchDispatchMode

import rltrain.run
from rltrain.algorithms.networks import products
from rltrain.cli import main as rltrain_main

RUNS = {  # name: the benchmark with the settings, further flags, steps
    "sac": ("updates", ["--algo", "sac"], 260),
    "td3": ("updates", ["--algo", "td3"], 260),
    "throughput": ("throughput", ["--workers", "0"], 6_144),
    "native": ("native", ["--workers", "0"], 32 * 1024 * 3),
    "dqn": ("dqn", ["--workers", "0", "--eval-every", "0", "--quiet"], 1_792),
    "teams": ("teams", ["--workers", "0"], 12_000),
    "pixels": ("pixels", [], 4_096),
}
PRODUCTS = ("mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_", "linear", "conv2d", "dot", "_linear_pointwise")
COPIES = ("copy_", "cat", "stack", "index_select", "clone", "contiguous", "take", "copyto", "concatenate", "zero_")
WAITING = ("select", "poll", "sleep", "acquire", "read", "recv")
OURS = ("/rltrain/", "/rl/", "/rollout/", "/algorithms/", "/torch/", "/numpy/", "<", "/lib/python3")
LAYERS = 8  # calls in a loop of a network are kept apart, up to this number, because its layers differ
QUIET = 50  # the fastest fiftieth of the times of a call is what it takes on a quiet machine


class Node:
    """All calls with one path through the code."""

    def __init__(self, name: str, file: str) -> None:
        self.name, self.file = name, file
        self.children: dict[Any, Node] = {}
        self.samples: list[int] = []  # ns, without the calls below

    def walk(self, kind: str = "") -> Iterator[tuple[str, Node]]:
        """The nodes below with the row of the table that each belongs to; `kind`: of all of them."""
        for child in self.children.values():
            of_child = kind or child.kind()
            yield of_child, child
            yield from child.walk(of_child if of_child in ("environment", "replay") else "")

    def kind(self) -> str:
        word = self.name.rpartition(".")[2]
        if self.file:
            if "/replay/" in self.file:
                return "replay"
            foreign = "/envs/" in self.file or not any(part in self.file for part in OURS)
            return "environment" if foreign or (word == "step" and "isolated_env" in self.file) else "python"
        for words, kind in ((PRODUCTS, "products"), (COPIES, "copies"), (WAITING, "waiting")):
            if word in words:
                return kind
        torch_made = any(part in self.name for part in ("Tensor", "_VariableFunctions", "_Engine", "pybind", "_fused"))
        return "elementwise" if torch_made or "linalg" in self.name else "python"


class Tracer:
    """Measures the calls of each iteration of the training loop."""

    def __init__(self) -> None:
        self.root, self.iterations = Node("", ""), 0

    def begin(self) -> None:
        now, node, own, seen = time.perf_counter_ns, self.root, 0, Counter[Any]()
        stack: list[tuple[Node, int, Counter[Any]]] = []
        last = now()

        def event(frame: Any, what: str, arg: Any) -> None:
            nonlocal node, own, seen, last
            own += now() - last
            if what in ("call", "c_call"):
                caller = frame.f_back if what == "call" else frame
                if what == "call":
                    code = frame.f_code
                    name, file, key = code.co_name, code.co_filename, (caller.f_lineno if caller else 0, code)
                else:
                    name, file = getattr(arg, "__qualname__", "") or repr(arg), ""
                    key = (frame.f_lineno, name)
                if caller and "/networks/" in caller.f_code.co_filename:
                    seen[key] += 1
                    key = (*key, min(seen[key], LAYERS))
                child = node.children.get(key)
                if child is None:
                    child = node.children[key] = Node(name, file)
                stack.append((node, own, seen))
                node, own, seen = child, 0, Counter()
            elif stack:
                node.samples.append(own)
                node, own, seen = stack.pop()
            last = now()

        self.iterations += 1
        sys.setprofile(event)

    def end(self) -> None:
        sys.setprofile(None)

    def seconds(self) -> Counter[str]:
        """Of each kind, in all iterations, on a quiet machine."""
        cost, found = self._cost(), Counter[str]()
        for kind, node in self.root.walk():
            count, below = len(node.samples), sum(len(child.samples) for child in node.children.values())
            if count:
                quiet = sorted(node.samples)[count // QUIET] * count - cost * (count + below)
                found[kind] += max(quiet, 0.0) / 1e9
        return found

    @staticmethod
    def _cost() -> float:
        """Nanoseconds that measuring a call adds to its own time, and to that of its caller."""
        tracer = Tracer()
        for _ in range(2000):
            tracer.begin()
            len(())
            tracer.end()
        samples = sorted(next(node for _, node in tracer.root.walk() if node.name == "len").samples)
        return samples[len(samples) // QUIET]


class Operations(TorchDispatchMode):
    """Counts the operations of products, and the bytes that all other operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = self.iterations = 0

    def begin(self) -> None:
        self.iterations += 1
        self.__enter__()

    def end(self) -> None:
        self.__exit__(None, None, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name, tensors = func.overloadpacket.__name__, [x for x in args if isinstance(x, torch.Tensor)]
        if name in PRODUCTS and len(tensors) > 1:
            x, weight = tensors[-2:] if name.startswith(("addmm", "baddbmm")) else tensors[:2]
            batch = x.shape[0] if x.ndim == 3 else 1
            self.flops += 2 * x.numel() * weight.numel() // (batch * max(x.shape[-1], 1))
        elif "convolution" in name and isinstance(result, torch.Tensor):
            self.flops += 2 * result.numel() * tensors[1][0].numel()
        elif not func.is_view and isinstance(result, torch.Tensor):
            self.bytes += sum(x.numel() * x.element_size() for x in (*tensors, result))
        return result


def fastest(function: Callable[[], Any]) -> float:
    """Seconds of a call on a quiet machine."""
    times = []
    for _ in range(400):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // QUIET]


def speeds() -> tuple[float, float]:
    """Operations per second of a product of size 256, by the faster library, and bytes per second of 256 kB arrays."""
    x, y, out, bias = torch.randn(256, 256), torch.randn(256, 256), torch.empty(256, 256), torch.zeros(256)
    calls = [lambda: torch.mm(x, y, out=out)]
    if products.has_onednn():
        calls.append(lambda: torch.ops.mkldnn._linear_pointwise(x, y, bias, "none", [], ""))
    with torch.no_grad():
        product = min(map(fastest, calls))
        return 2 * 256**3 / product, 3 * x.numel() * 4 / fastest(lambda: torch.add(x, y, out=out))


def observed(command: list[str], observer: Tracer | Operations) -> tuple[int, int]:
    """Runs the command, with the observer in each iteration after the first update; its steps and updates."""
    run, tick = rltrain.run.Run, rltrain.run.Run.tick
    active, begun, done = False, (0, 0), (0, 0)

    def observing(self: Any, unrolls: Any) -> None:
        nonlocal active, begun, done
        if active:
            observer.end()
        tick(self, unrolls)
        done = self.rollout.steps, self.learner.version
        active = done[1] > 0 and self.stopped is None
        if active:
            begun = begun if begun[1] else done
            observer.begin()

    run.tick = observing  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as output:
            if rltrain_main([*command, "--out", folder, "--seed", "0"]):
                raise SystemExit(output.getvalue())
    finally:
        run.tick = tick  # type: ignore[method-assign]
    return done[0] - begun[0], done[1] - begun[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(RUNS), metavar="NAME", help=f"of {', '.join(RUNS)}")
    options = parser.parse_args()
    wrong = [name for name in options.names if name not in RUNS]
    if wrong:
        parser.error(f"no profile {wrong[0]!r}; there are {', '.join(RUNS)}")
    torch.set_num_threads(1)
    flops, memory = speeds()
    print(f"{machine()['cpu']}, commit {commit()}: {flops / 1e9:.0f} GFLOP/s, {memory / 1e9:.0f} GB/s\n")
    kinds = ["products", "elementwise", "copies", "python", "replay", "environment", "waiting"]
    head = ["profile", "us per update", *kinds, "limit, us", "share of the limit"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name in options.names:
        module, flags, steps = RUNS[name]
        bench = importlib.import_module(module)
        settings = bench.RUN + bench.ZOO if module == "dqn" else bench.SETTINGS
        command = [*settings, *flags, "--steps", str(steps)]
        tracer, operations = Tracer(), Operations()
        updates = observed(command, tracer)[1]
        found = tracer.seconds()
        counted = observed(command, operations)[1]
        total = sum(found.values())
        limit = (operations.flops / flops + operations.bytes / memory) / counted
        share = limit / ((total - found["environment"] - found["waiting"]) / updates)
        cells = [f"{total / updates * 1e6:,.0f}", *(f"{found[kind] / total:.0%}" for kind in kinds)]
        print("| " + " | ".join([name, *cells, f"{limit * 1e6:,.0f}", f"{share:.2f}"]) + " |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
