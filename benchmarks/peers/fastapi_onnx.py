"""The usual service by hand: FastAPI, a pydantic model and onnxruntime. fastapi_onnx.py FILE PORT"""

import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
rest = {port.name: np.zeros((1, *port.shape[1:]), {"tensor(bool)": bool}.get(port.type, np.float32))
        for port in session.get_inputs() if port.name != "obs"}  # fmt: skip
app = FastAPI()


class Question(BaseModel):
    obs: list[float]


class Answer(BaseModel):
    action: int


@app.post("/act")
async def act(question: Question) -> Answer:
    found = session.run(["action"], {"obs": np.asarray([question.obs], np.float32), **rest})
    return Answer(action=int(found[0][0]))


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
