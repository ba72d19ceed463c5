"""The usual service by hand: FastAPI, a pydantic model and onnxruntime. serve_fastapi.py FILE PORT"""

import sys

import uvicorn
from fastapi import FastAPI
from onnx_policy import Policy
from pydantic import BaseModel

policy = Policy(sys.argv[1])
app = FastAPI()


class Question(BaseModel):
    obs: list[float]


class Answer(BaseModel):
    action: int


@app.post("/act")
async def act(question: Question) -> Answer:
    return Answer(action=policy.act([question.obs])[0])


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
