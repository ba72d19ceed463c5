"""Ray Serve with one replica and onnxruntime: serve_ray.py FILE PORT"""

import os
import sys
import time
from typing import Any

import ray
from ray import serve

FILE = os.path.abspath(sys.argv[1])
here = os.path.dirname(os.path.abspath(__file__))
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": here}})
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})


@serve.deployment(num_replicas=1, max_ongoing_requests=100, ray_actor_options={"num_cpus": 1})
class Service:
    def __init__(self, file: str) -> None:
        from onnx_policy import Policy

        self.policy = Policy(file)

    async def __call__(self, request: Any) -> dict[str, int]:
        return {"action": self.policy.act([(await request.json())["obs"]])[0]}


serve.run(Service.bind(FILE), route_prefix="/act", name="policy")
while True:
    time.sleep(1)
