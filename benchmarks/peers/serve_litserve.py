"""LitServe with one worker and onnxruntime: serve_litserve.py FILE PORT"""

import sys
from typing import Any

import litserve
from onnx_policy import Policy


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.policy = Policy(sys.argv[1])

    def decode_request(self, request: dict[str, Any]) -> list[float]:
        return request["obs"]

    def predict(self, x: list[float]) -> int:
        return self.policy.act([x])[0]

    def encode_response(self, output: int) -> dict[str, int]:
        return {"action": output}


if __name__ == "__main__":
    server = litserve.LitServer(Api(api_path="/act"), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False,
               num_api_servers=1, access_log=False)  # fmt: skip
