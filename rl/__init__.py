"""The public API: users import `rltrain` and nothing below it. Each name is imported at its first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from rltrain.system.imports import no_collection

if TYPE_CHECKING:
    from rltrain.algorithms import networks
    from rltrain.algorithms import own_class as algorithm_class
    from rltrain.algorithms import register as register_algorithm
    from rltrain.algorithms.functions import losses, optim, returns
    from rltrain.algorithms.functions.gradient_sync import SINGLE
    from rltrain.algorithms.functions.rng import Rng
    from rltrain.algorithms.multi_agent.settings import IQLConfig, MADDPGConfig, MAPPOConfig, QMIXConfig, VDNConfig
    from rltrain.algorithms.networks import distributions
    from rltrain.algorithms.off_policy.q_policy import QNetwork, greedy
    from rltrain.algorithms.off_policy.settings import (
        CrossQConfig,
        DDPGConfig,
        DQNConfig,
        DroQConfig,
        RainbowConfig,
        REDQConfig,
        SACConfig,
        TD3Config,
        TQCConfig,
    )
    from rltrain.algorithms.offline.settings import (
        AWACConfig,
        BCConfig,
        CQLConfig,
        ImplicitQConfig,
        MARWILConfig,
        TD3BCConfig,
    )
    from rltrain.algorithms.on_policy.settings import A2CConfig, A3CConfig, APPOConfig, IMPALAConfig, PPOConfig
    from rltrain.algorithms.protocol import Algorithm, Update
    from rltrain.algorithms.registry import build_policy, policy_factory, register_policy
    from rltrain.algorithms.settings import CHANGEABLE
    from rltrain.callbacks.callback import Callback
    from rltrain.callbacks.histograms import Histograms
    from rltrain.callbacks.run_view import RunView
    from rltrain.callbacks.stop_on_plateau import StopOnPlateau
    from rltrain.callbacks.video import Video
    from rltrain.config.run_config import RunConfig
    from rltrain.data.off_policy.estimate import Estimates, estimate
    from rltrain.deployment.export.export import export
    from rltrain.deployment.server.app import Limits
    from rltrain.deployment.server.serve import Served, serve
    from rltrain.envs.errors import EnvError, EnvFault
    from rltrain.envs.make import make_env
    from rltrain.envs.names import register_env
    from rltrain.envs.spec import ActionSpec, AgentGroup, EnvSpec, Leaf
    from rltrain.errors import CheckpointError, ConfigError, Interrupted, JobLost, RunFailed
    from rltrain.evaluation.evaluate import Evaluation, evaluate
    from rltrain.evaluation.policy import Trained, load
    from rltrain.jobs.functions import map, submit
    from rltrain.jobs.job import Job
    from rltrain.reporting.report import Result
    from rltrain.rollout.specs import GradientPlan, ReplayPlan, StreamPlan
    from rltrain.rollout.types import (
        Act,
        Gradients,
        Noise,
        Policy,
        PolicyHooks,
        Trajectory,
        Transition,
        discounts,
        traces,
    )
    from rltrain.training_loop import train
    from rltrain.tuning.tune import Tuned, tune

    __version__: str

__all__ = [
    "CHANGEABLE",
    "SINGLE",
    "A2CConfig",
    "A3CConfig",
    "APPOConfig",
    "AWACConfig",
    "Act",
    "ActionSpec",
    "AgentGroup",
    "Algorithm",
    "BCConfig",
    "CQLConfig",
    "Callback",
    "CheckpointError",
    "ConfigError",
    "CrossQConfig",
    "DDPGConfig",
    "DQNConfig",
    "DroQConfig",
    "EnvError",
    "EnvFault",
    "EnvSpec",
    "Estimates",
    "Evaluation",
    "GradientPlan",
    "Gradients",
    "Histograms",
    "IMPALAConfig",
    "IQLConfig",
    "ImplicitQConfig",
    "Interrupted",
    "Job",
    "JobLost",
    "Leaf",
    "Limits",
    "MADDPGConfig",
    "MAPPOConfig",
    "MARWILConfig",
    "Noise",
    "PPOConfig",
    "Policy",
    "PolicyHooks",
    "QMIXConfig",
    "QNetwork",
    "REDQConfig",
    "RainbowConfig",
    "ReplayPlan",
    "Result",
    "Rng",
    "RunConfig",
    "RunFailed",
    "RunView",
    "SACConfig",
    "Served",
    "StopOnPlateau",
    "StreamPlan",
    "TD3BCConfig",
    "TD3Config",
    "TQCConfig",
    "Trained",
    "Trajectory",
    "Transition",
    "Tuned",
    "Update",
    "VDNConfig",
    "Video",
    "algorithm_class",
    "build_policy",
    "discounts",
    "distributions",
    "estimate",
    "evaluate",
    "export",
    "greedy",
    "load",
    "losses",
    "make_env",
    "map",
    "networks",
    "optim",
    "policy_factory",
    "register_algorithm",
    "register_env",
    "register_policy",
    "returns",
    "serve",
    "submit",
    "traces",
    "train",
    "tune",
]

_MODULES = {  # names that are modules
    "distributions": "rltrain.algorithms.networks.distributions",
    "losses": "rltrain.algorithms.functions.losses",
    "networks": "rltrain.algorithms.networks",
    "optim": "rltrain.algorithms.functions.optim",
    "returns": "rltrain.algorithms.functions.returns",
}
_DEFINED_IN = {  # module: the names that it defines; `public=own` where the two differ
    "algorithms": "algorithm_class=own_class register_algorithm=register",
    "algorithms.functions.gradient_sync": "SINGLE",
    "algorithms.functions.rng": "Rng",
    "algorithms.multi_agent.settings": "IQLConfig MADDPGConfig MAPPOConfig QMIXConfig VDNConfig",
    "algorithms.off_policy.q_policy": "QNetwork greedy",
    "algorithms.off_policy.settings": "CrossQConfig DDPGConfig DQNConfig DroQConfig RainbowConfig REDQConfig SACConfig "
    "TD3Config TQCConfig",
    "algorithms.offline.settings": "AWACConfig BCConfig CQLConfig ImplicitQConfig MARWILConfig TD3BCConfig",
    "algorithms.on_policy.settings": "A2CConfig A3CConfig APPOConfig IMPALAConfig PPOConfig",
    "algorithms.protocol": "Algorithm Update",
    "algorithms.registry": "build_policy policy_factory register_policy",
    "algorithms.settings": "CHANGEABLE",
    "callbacks.callback": "Callback",
    "callbacks.histograms": "Histograms",
    "callbacks.run_view": "RunView",
    "callbacks.stop_on_plateau": "StopOnPlateau",
    "callbacks.video": "Video",
    "config.run_config": "RunConfig",
    "deployment.export.export": "export",
    "deployment.server.app": "Limits",
    "deployment.server.serve": "Served serve",
    "envs.errors": "EnvError EnvFault",
    "envs.make": "make_env",
    "envs.names": "register_env",
    "envs.spec": "ActionSpec AgentGroup EnvSpec Leaf",
    "errors": "CheckpointError ConfigError Interrupted JobLost RunFailed",
    "evaluation.evaluate": "Evaluation evaluate",
    "data.off_policy.estimate": "Estimates estimate",
    "evaluation.policy": "Trained load",
    "jobs.functions": "map submit",
    "jobs.job": "Job",
    "reporting.report": "Result",
    "rollout.specs": "GradientPlan ReplayPlan StreamPlan",
    "rollout.types": "Act Gradients Noise Policy PolicyHooks Trajectory Transition discounts traces",
    "training_loop": "train",
    "tuning.tune": "Tuned tune",
}
_LOCATION = {
    public: (f"rltrain.{module}", own or public)
    for module, names in _DEFINED_IN.items()
    for public, _, own in (name.partition("=") for name in names.split())
}

if not TYPE_CHECKING:  # hidden from type checkers, so that they report a misspelled name

    def __getattr__(name: str):
        with no_collection():  # many of them import torch
            if name in _MODULES:
                return importlib.import_module(_MODULES[name])
            if name in _LOCATION:
                module, attribute = _LOCATION[name]
                return getattr(importlib.import_module(module), attribute)
        if name == "__version__":
            return importlib.import_module("importlib.metadata").version("rltrain")
        raise AttributeError(f"module 'rltrain' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
