"""Wrong calls, as people make them: each is answered in one line that names what is wrong and the remedy."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from oracles.forged import forge_config

import rltrain
from rltrain import cli
from rltrain.rollout.scheduler import Rollout
from rltrain.setup import first_look

FILE = """
import gymnasium, numpy as np
from gymnasium import spaces
import rltrain
from torch import nn

class Maze(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}
    def __init__(self, size=1): self.size = size
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action): return np.zeros(2, np.float32), 1.0, False, True, {}

class Unbounded(Maze):
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

class Continuous(Maze):
    action_space = spaces.Box(-1, 1, (1,), np.float32)

class Words(Maze):
    observation_space = spaces.Text(5)

class NoSpaces:
    def reset(self, *, seed=None, options=None): return 0, {}
    def step(self, action): return 0, 0.0, True, False, {}

class OldReset(Maze):
    def reset(self): return np.zeros(2, np.float32)

class OldStep(Maze):
    def step(self, action): return np.zeros(2, np.float32), 1.0, True, {}

class NoNumber(Maze):
    def step(self, action): return np.full(2, np.nan, np.float32), 1.0, False, True, {}

class Strays(Maze):
    action_space = spaces.Discrete(2)
    observation_space = spaces.Discrete(3)
    def reset(self, *, seed=None, options=None): return 7, {}
    def step(self, action): return 7, 1.0, False, True, {}

def nothing(): return None
def a_class(): return Maze

class Net(nn.Module):
    def __init__(self): super().__init__()

class Featureless(nn.Module):
    def __init__(self, spec): super().__init__()

class NoModule:
    features = 3
    def __init__(self, spec): pass

class Algo:
    def __init__(self, spec, config, device, seed, streams): pass

number = 3
"""
SETTINGS = {
    "unknown.toml": "learning_rate = 1e-3\nsteps = 100\n",
    "table.toml": "steps = 100\n[pppo]\nlr = 1e-3\n",
    "value.toml": "steps = 100\n[ppo]\nlr = 'high'\n",
    "broken.toml": "steps = = 3\n",
    "code.toml": 'env = "payload:Env"\n',
    "algo.toml": 'algo = "payload.py:Algo"\n',
    "list.toml": "steps = [1, 2]\n",
}
PPO = "--algo ppo --env CartPole-v1"
SAC = "--algo sac --env Pendulum-v1"
DQN = "--algo dqn --env CartPole-v1"


def cases(text: str) -> list[tuple[str, list[str]]]:
    """Lines `call => word, word`, the words separated by ` & `."""
    pairs = [line.split("=>") for line in text.strip().splitlines()]
    return [(call.strip(), [word.strip() for word in words.split(" & ")]) for call, words in pairs]


TRAINING = cases(f"""
--env CartPole-v1 => --algo & ppo
--algo ppo => --env & CartPole-v1
--algo => --algo
--algo ppp --env CartPole-v1 => 'ppp' & 'ppo'
--algo PPO --env CartPole-v1 => 'PPO' & 'ppo'
--algo trpo --env CartPole-v1 => 'trpo' & ppo & sac
--algo rainbow_dqn --env CartPole-v1 => 'rainbow_dqn' & 'rainbow'
--algo recurrentppo --env CartPole-v1 => 'recurrentppo' & --memory
--algo ppo_lstm --env CartPole-v1 => 'ppo_lstm' & --memory
--algo DoubleDQN --env CartPole-v1 => 'DoubleDQN' & --double
--algo ARS --env CartPole-v1 => 'ARS' & 'ppo'
--algo dreamerv3 --env CartPole-v1 => 'dreamerv3' & ppo
--algo apex --env CartPole-v1 => 'apex' & dqn
--algo "ppo " --env CartPole-v1 => 'ppo ' & 'ppo'
--algo mine.py --env CartPole-v1 => mine.py & :Class
--algo nowhere.py:Algo --env CartPole-v1 => nowhere.py:Algo & no file
--algo mine.py:Algoo --env CartPole-v1 => 'Algoo' & 'Algo'
--algo mine.py:Algo --env CartPole-v1 => mine.py:Algo & register_algorithm
--algo mine.py:number --env CartPole-v1 => mine.py:number & class
--algo no_such_module:Algo --env CartPole-v1 => 'no_such_module' & looked in
{PPO} --learning-rate 1e-3 => --learning-rate & --lr
{PPO} --learning_rate 1e-3 => --learning-rate & --lr
{PPO} --learningrate 1e-3 => --learningrate & --lr
{PPO} -lr 3 => -lr & --lr
{PPO} lr=3 => 'lr=3' & --lr
{PPO} --lr=fast => --lr & number & 'fast'
{PPO} --lr 1e-3x => --lr & number & '1e-3x'
{PPO} --lr -1 => --lr & greater than 0
{PPO} --lr nan => --lr & finite
{PPO} --lr 0,001 => --lr & number & '0,001'
{PPO} --lr => --lr & argument
{PPO} --steps 0 => --steps & at least 1
{PPO} --steps 1.5 => --steps & whole number & 1.5
{PPO} --steps 10k => --steps & '10k' & 10_000
{PPO} --steps 1M => --steps & '1M' & 1_000_000
{PPO} --steps 1,000,000 => --steps & '1,000,000' & 1_000_000
{PPO} --steps 1e30 => --steps & 2^63
{PPO} --steps -5 => --steps & at least 1
{PPO} --steps ten => --steps & whole number
{PPO} --seed -1 => --seed & at least 0
{PPO} --seed abc => --seed & whole number & 'abc'
{PPO} --gamma 1.1 => --gamma & at most 1
{PPO} --gamma 99% => --gamma & number
{PPO} --workers -1 => --workers & at least 0
{PPO} --workers auto => --workers & whole number & auto
{PPO} --workers 9 --streams 8 => 9 workers & 8 streams
{PPO} --streams 0 => --streams & at least 1
{PPO} --widths 64x64 => --widths & 64,64
{PPO} --widths [64,64] --lr x => --lr & number
{PPO} --widths 0,8 => --widths & at least 1
{PPO} --activation gelu => --activation & 'tanh' & 'gelu'
{PPO} --normalize-obs true => 'true' & --normalize-obs & --no-normalize-obs
{PPO} --normalize-obs=false => --normalize-obs & --no-normalize-obs
{PPO} --no-lr => --no-lr & --lr
{PPO} --memory yes => --memory & 'gru' & 'yes'
{PPO} --memory gru --sequence 7 => sequence & divide
{PPO} --backend ray => --backend & 'processes' & 'ray'
{PPO} --backend gpu => --backend & 'processes' & 'gpu'
{PPO} --precision fp16 => --precision & 'bfloat16' & 'fp16'
{PPO} --vector async => --vector & 'serial' & 'async'
{PPO} --preset best => --preset & 'auto' & 'best'
{PPO} --inference central --workers 0 => inference central & workers
{PPO} --stop-return 475 --eval-every 0 => stop_return & eval_every
{PPO} --record a --replay-from b => record & replay_from
{PPO} --opponents self => --opponents & pool & self & does not exist
{PPO} --max-seconds 0 => --max-seconds & greater than 0
{PPO} --max-seconds 1h => --max-seconds & number & '1h'
{PPO} --eval-episodes 0 => --eval-episodes & at least 1
{PPO} --keep 0 => --keep & at least 1
{PPO} --share some => --share & 'all' & 'some'
{PPO} --env-arg 3 => --env-arg & key=value
{PPO} --env-arg size 3 => --env-arg & key=value
{PPO} --env-args size=3 => --env-args & --env-arg
{PPO} --env_kwargs size=3 => --env-kwargs & --env-arg
{PPO} extra => 'extra' & --
{PPO} --set lr=3 => --set & --lr
{PPO} --quite => --quite & --quiet
{PPO} --help-me => --help-me & --help
{PPO} --gpu => --gpu & --device
{PPO} --gpus 2 => --gpus & --device
{PPO} --cuda => --cuda & --device
{PPO} --num-envs 8 => --num-envs & --streams
{PPO} --n-envs 8 => --n-envs & --streams
{PPO} --num-workers 8 => --num-workers & --workers
{PPO} --num-env-runners 2 => --num-env-runners & --workers
{PPO} --total-timesteps 100 => --total-timesteps & --steps
{PPO} --timesteps 100 => --timesteps & --steps
{PPO} --max-steps 100 => --max-steps & --steps
{PPO} --n-steps 128 => --n-steps & --unroll
{PPO} --num-steps 128 => --num-steps & --unroll
{PPO} --batch-size 64 => --batch-size & --minibatches
{PPO} --n-epochs 4 => --n-epochs & --epochs
{PPO} --ent-coef 0.1 => --ent-coef & --entropy
{PPO} --vf-coef 0.5 => --vf-coef & --value
{PPO} --clip-range 0.2 => --clip-range & --clip
{PPO} --gae-lambda 0.9 => --gae-lambda & --lam
{PPO} --target-kl 0.1 => --target-kl & --max-kl
{PPO} --max-grad-norms 1 => --max-grad-norms & --max-grad-norm
{PPO} --verbose 1 => --verbose & --quiet
{PPO} --progress-bar => --progress-bar & --quiet
{PPO} --tensorboard-log runs => --tensorboard-log & --out
{PPO} --track => --track & TensorBoard
{PPO} --wandb-project-name x => --wandb-project-name & TensorBoard
{PPO} --capture-video => --capture-video & rleval
{PPO} --save-model => --save-model & --checkpoint-every
{PPO} --save-freq 100 => --save-freq & --checkpoint-every
{PPO} --eval-freq 100 => --eval-freq & --eval-every
{PPO} --n-eval-episodes 5 => --n-eval-episodes & --eval-episodes
{PPO} --policy MlpPolicy => 'MlpPolicy' & --widths
{PPO} --policy CnnPolicy => 'CnnPolicy' & --torso
{PPO} --policy MlpLstmPolicy => 'MlpLstmPolicy' & --memory
{PPO} --policy actor => 'actor' & actor_critic
{PPO} --policy soft => --policy soft & ppo needs actor_critic, its default
{DQN} --policy actor_critic => --policy actor_critic & dqn needs q, its default
{PPO} --net-arch 64,64 => --net-arch & --widths
{PPO} --policy-kwargs x => --policy-kwargs & --widths
{PPO} --use-sde => --use-sde & --sde
{PPO} --learning-starts 100 => --learning-starts & --warmup & ppo
{PPO} --buffer-size 100 => --buffer-size & appo & ppo
{PPO} --train-batch-size 4000 => --train-batch-size & --streams & --unroll
{PPO} --framework torch => --framework & PyTorch
{PPO} --optimizer sgd => --optimizer & a2c
{PPO} --double => --double & dqn
{PPO} --exp-name x => --exp-name & --out
{PPO} --config-file x.toml => --config-file & --config
{PPO} --load runs/x => --load & --resume
{PPO} --checkpoint runs/x => --checkpoint & --resume
{PPO} --render => --render & rleval
{DQN} --batch-size 64 => --batch-size & --batch
{DQN} --buffer-size 1000 => --buffer-size & --capacity
{DQN} --train-freq 4 => --train-freq & --unroll
{DQN} --gradient-steps 1 => --gradient-steps & --updates-per-step
{DQN} --exploration-fraction 0.1 => --exploration-fraction & --epsilon-share
{DQN} --exploration-final-eps 0.1 => --exploration-final-eps & --epsilon-end
{DQN} --target-update-interval 10 => --target-update-interval & --target-every
{DQN} --double-q => --double-q & --double
{DQN} --prioritized-replay => --prioritized-replay & --prioritized
{DQN} --clip 0.1 => --clip & ppo & dqn
{DQN} --tau 0.1 --target-every 5 => target_every & tau
{SAC} --ent-coef auto => --ent-coef & --temperature
{PPO} --alpha 0.2 => --alpha & --temperature
{SAC} --alpha 0.2 => --alpha & temperature
{SAC} --autotune => --autotune & --learn-temperature
{SAC} --critic-lr 1 => --critic-lr & --lr-q
{SAC} --action-noise x => --action-noise & td3 & sac
{SAC} --epochs 3 => --epochs & ppo & sac
{SAC} --capacity 0 => --capacity & at least 1
{PPO} --device gpu => gpu & cuda
{PPO} --device cuda:99 => cuda:99 & not available
{PPO} --device cuda --learners 2 --workers 0 => cuda & not available
{PPO} --device "" => --device & cpu
{PPO} --device tpu => tpu & cuda
{PPO} --learners 0 => --learners & at least 1
{PPO} --torso no.such:Net => no.such:Net & no module
{PPO} --torso mine.py:Nett => 'Nett' & 'Net'
{PPO} --torso mine.py:Net => mine.py:Net & spec
{PPO} --torso mine.py:Featureless => mine.py:Featureless & features
{PPO} --torso mine.py:NoModule => mine.py:NoModule & nn.Module
{PPO} --torso resnet => 'resnet' & impala & module:Class
{PPO} --torso nature => nature & image
{PPO} --import no_such_module => --import no_such_module & no module
{PPO} --import nowhere.py => --import nowhere.py & no file
--algo ppo --env CartPol-v1 => 'CartPol-v1' & 'CartPole-v1'
--algo ppo --env CartPole => 'CartPole' & 'CartPole-v1'
--algo ppo --env cartpole-v1 => 'cartpole-v1' & 'CartPole-v1'
--algo ppo --env CartPole-v9 => CartPole-v9 & CartPole-v1
--algo ppo --env Pong => 'Pong' & ALE/Pong-v5
--algo ppo --env PongNoFrameskip-v4 => 'PongNoFrameskip-v4' & ALE/Pong-v5
--algo ppo --env "CartPole-v1 " => 'CartPole-v1 ' & 'CartPole-v1'
--algo ppo --env "" => --env & CartPole-v1
--algo ppo --env mine.py => mine.py:ClassOrFactory
--algo ppo --env gone.py:Maze => gone.py:Maze & no file
--algo ppo --env mine.py:Maz => 'Maz' & 'Maze'
--algo ppo --env mine:Maz => 'Maz' & 'Maze'
--algo ppo --env nowhere.tasks:Maze => nowhere & looked in
--algo ppo --env mine.py:number => mine.py:number & class
--algo ppo --env mine.py:nothing => mine.py:nothing & gymnasium.Env
--algo ppo --env mine.py:a_class => mine.py:a_class & gymnasium.Env
--algo ppo --env mine.py:Maze --env-arg sise=3 => 'sise' & 'size'
--algo ppo --env CartPole-v1 --env-arg size=3 => 'size' & sutton_barto_reward
--algo ppo --env CartPole-v1 --env-arg render_mode=window => render_mode & 'human'
--algo ppo --env mine.py:Words => Text & Supported
--algo ppo --env mine.py:NoSpaces => mine.py:NoSpaces & gymnasium.Env
--algo ppo --env mine.py:OldReset => mine.py:OldReset & seed
--algo ppo --env mine.py:OldStep => mine.py:OldStep & 4 values
--algo ppo --env mine.py:NoNumber => mine.py:NoNumber & not finite
--algo ppo --env mine.py:Strays => mine.py:Strays & 7
--algo sac --env mine.py:Unbounded => mine.py:Unbounded & --action-bound
--algo dqn --env mine.py:Continuous => dqn & sac
--algo td3 --env CartPole-v1 => td3 & dqn
--algo qmix --env CartPole-v1 => qmix & one agent & ppo
--algo dqn --env two-step => dqn & two-step & iql
--algo ppo --env CartPole-v1 --opponents pool => --opponents pool & two agents
--algo ppo --env MountainCar-v0 --vector native => MountainCar-v0 & --vector serial
--algo ppo --env pettingzoo:mpe2.nothing_v3 => mpe2.nothing_v3 & module
--algo ppo --env probe:nothing => 'nothing' & two-steps
--algo ppo --env atari:Pang => Pang & ong
--config nowhere.toml => nowhere.toml & no such file
--config unknown.toml {PPO} => unknown.toml, line 1 & 'learning_rate' & 'lr'
--config table.toml {PPO} => table.toml, line 2 & [pppo] & [ppo]
--config value.toml {PPO} => value.toml, line 3 & lr & 'high'
--config broken.toml {PPO} => broken.toml & TOML & line 1
--config code.toml --algo ppo => code.toml & payload & --trust
--config algo.toml --env CartPole-v1 => algo.toml & payload.py & --trust
--config list.toml {PPO} => list.toml, line 1 & steps & whole number
--config . {PPO} => .: & not a file
--config mine.py {PPO} => mine.py & TOML
--out mine.py {PPO} => --out mine.py & cannot be made
{DQN} --data= => must name a folder
--algo bc --env CartPole-v1 --data= => must name a folder
{PPO} --record= => --record & must name a folder
--replay-from nowhere {DQN} => nowhere & not a recording
{PPO} --replay-from nowhere => --replay-from & ppo & dqn
--algo qmix --env two-step --replay-from nowhere => nowhere & not a recording
{PPO} --record mine.py => mine.py & folder
{PPO} --cluster localhost:8786 => localhost:8786 & tcp://
{PPO} --cluster tcp://127.0.0.1:87,86 => 87,86 & tcp://
{PPO} --cluster tcp://localhost => localhost & HOST:PORT
{PPO} --cluster nowhere.json => nowhere.json & tcp://
{PPO} --cluster tcp://127.0.0.1:1 --workers 0 => cluster & workers 0
{PPO} --tls-ca nowhere.pem --backend dask => nowhere.pem & no such file
--resume nowhere => nowhere & run.json
--resume => --resume
--resume . --steps 9 => run.json
--resume run --lr 1e-3 => --lr & cannot be changed & steps
--resume run --seed 3 => --seed & cannot be changed
--resume run --algo dqn => --algo & cannot be changed
--resume run --env Pendulum-v1 => --env & cannot be changed
--resume run --nonsense 3 => --nonsense & --help
--resume run --learning-rate 1 => --learning-rate & --lr
--resume run/checkpoints => run/checkpoints & run.json
--resume run/run.json => run/run.json & folder
--resume run --config value.toml => --config & --resume
--resume stranger => stranger & payload & --trust
--resume strange-algo => strange-algo & payload.py & --trust
""")

EVALUATION = cases("""
=> RUN_OR_CHECKPOINT & runs/
nowhere => nowhere & not exist
. => no checkpoint & run's folder
mine.py => mine.py & run's folder
run --episodes 0 => --episodes & at least 1
run --episodes ten => --episodes & whole number
run --episodes 1.5 => --episodes & whole number
run --seed -1 => --seed & at least 0
run --n-eval-episodes 3 => --n-eval-episodes & --episodes
run --deterministic => --deterministic & --stochastic
run --learning-rate 3 => --learning-rate & --episodes
run --steps 100 => --steps & --episodes
run --workers 2 => --workers & --episodes
run --video => --video
run --gif x => --gif & --video
run --env CartPol-v1 => 'CartPol-v1' & 'CartPole-v1'
run --env Acrobot-v1 => Acrobot-v1 & spaces & CartPole-v1
run --env mine.py:Maze => mine.py:Maze & spaces & CartPole-v1
run --env-arg size=3 => 'size' & sutton_barto_reward
run --env-arg size => --env-arg & key=value
run --render => --render & --video
run --checkpoint best => --checkpoint & --best
run --device cuda => --device & cpu
run/run.json => run/run.json & folder
empty => empty & checkpoint
stranger => stranger & payload & --trust
strange-algo => strange-algo & payload.py & --trust
run --import no_such_module => --import no_such_module & no module
run again => 'again' & takes one
""")


def train(**settings: Any) -> Callable[[], object]:
    return lambda: rltrain.train(**{"algo": "ppo", "env": "CartPole-v1", "quiet": True, **settings})


class Line(gymnasium.Env[Any, Any]):
    """Has no spaces."""


PYTHON: list[tuple[str, Callable[[], object], list[str]]] = [
    ("train()", lambda: rltrain.train(), ["algo", "env", "train("]),
    ("train('ppo')", lambda: rltrain.train("ppo"), ["'ppo'", "algo='ppo'"]),
    ("train(PPOConfig())", lambda: rltrain.train(rltrain.PPOConfig()), ["PPOConfig", "settings="]),
    ("train({...})", lambda: rltrain.train({"algo": "ppo"}), ["dict", "**"]),
    ("train(PPOConfig)", lambda: rltrain.train(rltrain.PPOConfig), ["PPOConfig", "settings="]),
    ("env=gym.make()", train(env=gymnasium.make("CartPole-v1")), ["instance", "'CartPole-v1'"]),
    ("env=make_vec", train(env=gymnasium.make_vec("CartPole-v1", 2)), ["instance", "single", "CartPole-v1"]),
    ("env=None", train(env=None), ["env", "CartPole-v1"]),
    ("env=3", train(env=3), ["env", "name", "3"]),
    ("env=[...]", train(env=["CartPole-v1"]), ["env", "name", "CartPole-v1"]),
    ("env=Line()", train(env=Line()), ["instance of Line", "class"]),
    ("env=Line", train(env=Line), ["Line", "observation_space"]),
    ("env_args=3", train(env_args=3), ["env_args", "key = value", "3"]),
    ("env_args=[...]", train(env_args=["size"]), ["env_args", "key = value"]),
    ("learning_rate=", train(learning_rate=1e-3), ["learning_rate", "'lr'"]),
    ("total_timesteps=", train(total_timesteps=100), ["total_timesteps", "'steps'"]),
    ("n_steps=", train(n_steps=100), ["n_steps", "'unroll'"]),
    ("policy_kwargs=", train(policy_kwargs={}), ["policy_kwargs", "'widths'"]),
    ("policy='MlpPolicy'", train(policy="MlpPolicy"), ["'MlpPolicy'", "widths"]),
    ("callback=", train(callback=print), ["callback", "callbacks"]),
    ("verbose=1", train(verbose=1), ["verbose", "'quiet'"]),
    ("device='gpu'", train(device="gpu"), ["gpu", "cuda"]),
    ("device=0", train(device=0), ["device", "text", "0"]),
    ("lr='fast'", train(lr="fast"), ["lr", "number", "'fast'"]),
    ("lr=lambda", train(lr=lambda left: left), ["lr", "number", "lr_end"]),
    ("lr=[1]", train(lr=[1e-3]), ["lr", "number", "[0.001]"]),
    ("lr=nan", train(lr=float("nan")), ["lr", "finite"]),
    ("steps='100'", train(steps="100"), ["steps", "whole number", "'100'"]),
    ("steps=1.5", train(steps=1.5), ["steps", "whole number", "1.5"]),
    ("steps=True", train(steps=True), ["steps", "whole number", "True"]),
    ("seed=-1", train(seed=-1), ["seed", "at least 0"]),
    ("seed='x'", train(seed="x"), ["seed", "whole number"]),
    ("widths=64", train(widths=64), ["widths", "list", "64"]),
    ("widths='64'", train(widths="64,64"), ["widths", "list", "64"]),
    ("widths=[64.5]", train(widths=[64.5]), ["widths", "whole number", "64.5"]),
    ("widths=[]", train(widths=[-1]), ["widths", "at least 1"]),
    ("activation=class", train(activation=dict), ["activation", "'tanh'"]),
    ("torso=instance", train(torso=object()), ["torso", "class"]),
    ("workers=None2", train(workers="2"), ["workers", "whole number", "'2'"]),
    ("quiet=1", train(quiet=1), ["quiet", "true or false", "1"]),
    ("settings=dict", train(settings={"lr": 1}), ["settings", "PPOConfig"]),
    ("settings=other", train(settings=rltrain.SACConfig()), ["settings", "PPOConfig", "SACConfig"]),
    ("settings=Class", train(settings=rltrain.PPOConfig), ["settings", "PPOConfig"]),
    ("algo=3", train(algo=3), ["algo", "3", "'ppo'"]),
    ("algo=class", train(algo=Line), ["Line", "register_algorithm"]),
    ("resume=missing", lambda: rltrain.train(resume="nowhere"), ["nowhere", "run.json"]),
    ("resume=True", lambda: rltrain.train(resume=True), ["resume", "folder", "True"]),
    ("resume, lr", lambda: rltrain.train(resume="run", lr=1e-3), ["lr", "cannot be changed", "steps"]),
    ("resume, algo", lambda: rltrain.train(resume="run", algo="ppo"), ["algo", "cannot be changed"]),
    ("resume, nonsense", lambda: rltrain.train(resume="run", nonsense=1), ["nonsense"]),
    ("load(missing)", lambda: rltrain.load("nowhere"), ["nowhere", "not exist"]),
    ("load(None)", lambda: rltrain.load(None), ["None", "folder"]),
    ("load(file)", lambda: rltrain.load("mine.py"), ["mine.py", "run"]),
    ("load(result)", lambda: rltrain.load(3), ["3", "folder"]),
    ("evaluate(missing)", lambda: rltrain.evaluate("nowhere"), ["nowhere", "not exist"]),
    ("evaluate(None)", lambda: rltrain.evaluate(None), ["None", "folder"]),
    ("evaluate(episodes=0)", lambda: rltrain.evaluate("run", episodes=0), ["episodes", "at least 1"]),
    ("evaluate(episodes='3')", lambda: rltrain.evaluate("run", episodes="3"), ["episodes", "whole number", "'3'"]),
    ("evaluate(episodes=2.5)", lambda: rltrain.evaluate("run", episodes=2.5), ["episodes", "whole number", "2.5"]),
    ("evaluate(seed=None)", lambda: rltrain.evaluate("run", seed=None), ["seed", "whole number", "None"]),
    (
        "evaluate(env=instance)",
        lambda: rltrain.evaluate("run", env=gymnasium.make("CartPole-v1")),
        ["instance", "'Cart"],
    ),
    ("evaluate(env=other)", lambda: rltrain.evaluate("run", env="Acrobot-v1"), ["Acrobot-v1", "spaces", "CartPole-v1"]),
    ("evaluate(env_args)", lambda: rltrain.evaluate("run", env_args={"size": 1}), ["'size'", "sutton_barto_reward"]),
    ("make_env(wrong)", lambda: rltrain.make_env("CartPol-v1"), ["'CartPol-v1'", "'CartPole-v1'"]),
    ("make_env(instance)", lambda: rltrain.make_env(gymnasium.make("CartPole-v1")), ["instance", "'CartPole-v1'"]),
    ("make_env(None)", lambda: rltrain.make_env(None), ["None", "CartPole-v1"]),
    ("register_env(instance)", lambda: rltrain.register_env("x", gymnasium.make("CartPole-v1")), ["'x'", "instance"]),
    (
        "register_algorithm",
        lambda: rltrain.register_algorithm("my algo", Line, rltrain.PPOConfig),
        ["my algo", "identifier"],
    ),
]
EXPECTED = (rltrain.ConfigError, rltrain.EnvError, rltrain.CheckpointError, ValueError)


@dataclass
class Answer:
    """What a wrong call printed or raised."""

    text: str
    status: int | None


def prepare(folder: Path) -> None:
    """The files that the calls name: an environment, settings, a run, and a run of somebody else's."""
    (folder / "mine.py").write_text(FILE)
    for name, text in SETTINGS.items():
        (folder / name).write_text(text)
    (folder / "empty").mkdir()
    quick: dict[str, Any] = {
        "algo": "ppo", "workers": 0, "streams": 1, "unroll": 8, "epochs": 1, "minibatches": 1, "widths": (2,),
        "steps": 8, "eval_every": 0, "preset": "none", "quiet": True,
    }  # fmt: skip
    made = rltrain.train(**quick, env="CartPole-v1", out=str(folder / "made")).run
    made.rename(folder / "run")
    for name, changes in (("stranger", {"env": "payload:Env"}), ("strange-algo", {"algo": "payload.py:Algo"})):
        shutil.copytree(folder / "run", folder / name)
        forge_config(folder / name, **changes)


class Accepted(BaseException):
    """The call began to train."""


class Here:
    """Executes the tasks of a `TaskProcess` in this process, which is quicker."""

    def __init__(self, tasks: Any, subject: Any, timeout: float) -> None:
        self.subject, self._tasks = subject, tasks(subject, lambda call: None)
        self._calls: list[tuple[str, tuple[Any, ...]]] = []

    def start(self, task: str, *args: Any) -> None:
        self._calls.append((task, args))

    def result(self, *limits: Any) -> Any:
        task, args = self._calls.pop(0)
        return getattr(self._tasks, task)(*args)

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def accepted(*_: Any) -> None:
    raise Accepted


def command(line: str, main: Callable[[list[str]], int]) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: int | None = main(shlex.split(line))
        except SystemExit as end:
            status = end.code  # type: ignore[assignment]
        except Accepted:
            status = 0
    return Answer(out.getvalue() + err.getvalue(), status)


def call(function: Callable[[], object]) -> Answer:
    try:
        function()
    except EXPECTED as error:
        return Answer(str(error), 2)
    except Accepted:
        pass
    return Answer("", 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("messages")
    prepare(folder)
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls are made in the folder with the files, on a machine without a GPU and without a screen."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if f"{os.sep}pytest-" not in path])
    monkeypatch.setattr(first_look, "TaskProcess", Here)
    monkeypatch.setattr(Rollout, "start", accepted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    for env_id in [env_id for env_id, spec in gymnasium.registry.items() if "ale_py" in str(spec.entry_point)]:
        monkeypatch.delitem(gymnasium.registry, env_id)  # another test may have imported ale_py, which registers these


def unclear(calls: Iterable[tuple[str, Callable[[], Answer], list[str]]]) -> list[str]:
    """The calls that were accepted, or whose answer has more than one line, another status, or lacks a word."""
    faults = []
    for name, make, words in calls:
        answer = make()
        lines = answer.text.strip().splitlines()
        missing = [word for word in words if word not in answer.text]
        if len(lines) != 1 or answer.status not in (1, 2) or missing:
            faults.append(f"{name} -> {answer.status} {answer.text.strip()!r} lacks {missing}")
    return faults


@pytest.mark.filterwarnings("ignore")  # of environments
def test_every_wrong_command_is_answered_in_one_clear_line() -> None:
    calls = [(f"rltrain {line}", partial(command, line, cli.main), words) for line, words in TRAINING]
    calls += [(f"rleval {line}", partial(command, line, cli.main_eval), words) for line, words in EVALUATION]

    assert len(calls) > 140
    assert unclear(calls) == []


@pytest.mark.filterwarnings("ignore")
def test_every_wrong_call_in_python_is_answered_in_one_clear_line() -> None:
    assert unclear((name, partial(call, function), words) for name, function, words in PYTHON) == []


def test_a_right_call_is_accepted() -> None:
    """So the harness can tell the two apart."""
    assert command(f"{PPO} --steps 8 --streams 1 --workers 0 --preset none --eval-every 0", cli.main).status == 0
    assert command("run --episodes 1", cli.main_eval).status == 0
