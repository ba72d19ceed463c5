"""The greedy action of an exported policy, for the peers of `benchmarks/serving.py`: one thread of onnxruntime."""

import numpy as np
import onnxruntime


class Policy:
    """An ONNX file of `rlexport`, for one observation or several."""

    def __init__(self, file: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.rest = {port.name: (port.shape[1:], {"tensor(bool)": bool}.get(port.type, np.float32))
                     for port in self.session.get_inputs() if port.name != "obs"}  # fmt: skip

    def act(self, obs: list[list[float]]) -> list[int]:
        rest = {name: np.zeros((len(obs), *shape), dtype) for name, (shape, dtype) in self.rest.items()}
        found = self.session.run(["action"], {"obs": np.asarray(obs, np.float32), **rest})
        return [int(action) for action in found[0]]
