"""What /metrics tells, in the text format of Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)  # seconds


class Metrics:
    """Counts of this process."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.latency = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0
        self.rows = self.batches = self.late = self.reloads = self.failed_reloads = 0
        self.connections = 0  # WebSockets

    def batch(self, rows: int) -> None:
        self.batches += 1
        self.rows += rows

    def answered(self, path: str, status: int, seconds: float) -> None:
        self.requests[path, status] += 1
        if path == "/v1/act":
            self.latency[bisect_left(BUCKETS, seconds)] += 1
            self.seconds += seconds

    def text(self, waiting: int, sessions: int, steps: dict[str, int], recorded: int | None = None) -> str:
        """The text of /metrics."""
        lines = ["# TYPE rlserve_requests_total counter"]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'rlserve_requests_total{{path="{path}",status="{status}"}} {count}')
        lines.append("# TYPE rlserve_latency_seconds histogram")
        total = 0
        for bound, count in zip((*BUCKETS, "+Inf"), self.latency, strict=True):
            total += count
            lines.append(f'rlserve_latency_seconds_bucket{{le="{bound}"}} {total}')
        lines += [f"rlserve_latency_seconds_sum {self.seconds:.6f}", f"rlserve_latency_seconds_count {total}"]
        counters = {
            "rows": self.rows,
            "batches": self.batches,
            "late_requests": self.late,
            "reloads": self.reloads,
            "failed_reloads": self.failed_reloads,
            **({} if recorded is None else {"recorded_steps": recorded}),
        }
        for name, value in counters.items():
            lines += [f"# TYPE rlserve_{name}_total counter", f"rlserve_{name}_total {value}"]
        gauges = {"queue_rows": waiting, "sessions": sessions, "websockets": self.connections}
        for name, value in gauges.items():
            lines += [f"# TYPE rlserve_{name} gauge", f"rlserve_{name} {value}"]
        lines.append("# TYPE rlserve_policy_step gauge")
        for name, step in steps.items():
            label = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
            lines.append(f'rlserve_policy_step{{policy="{label}"}} {step}')
        return "\n".join(lines) + "\n"


def summed(texts: list[str]) -> str:
    """Metrics of several processes as one text: counts are added, steps are the lowest."""
    totals: dict[str, float | str] = {}
    for text in texts:
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            if line.startswith("#"):
                totals[line] = ""
            elif name.startswith("rlserve_policy_step"):
                totals[name] = min(float(totals.get(name, value)), float(value))
            else:
                totals[name] = float(totals.get(name, 0.0)) + float(value)
    return "".join(f"{name} {value:.17g}\n" if value != "" else f"{name}\n" for name, value in totals.items())
