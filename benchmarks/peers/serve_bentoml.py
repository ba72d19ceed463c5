"""BentoML with one worker and onnxruntime: serve_bentoml.py FILE PORT"""

import os
import sys

import bentoml
from onnx_policy import Policy


@bentoml.service(workers=1, traffic={"timeout": 60})
class Service:
    def __init__(self) -> None:
        self.policy = Policy(os.environ["POLICY"])

    @bentoml.api(route="/act")
    def act(self, obs: list[float]) -> dict[str, int]:
        return {"action": self.policy.act([obs])[0]}


if __name__ == "__main__":
    os.environ["POLICY"] = os.path.abspath(sys.argv[1])
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", "serve_bentoml:Service", "--host", "127.0.0.1",
                              "--port", sys.argv[2]])  # fmt: skip
