"""`rltrain.tune`: opens the folder of a search, new or resumed, runs the search, and returns its result."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rltrain.config.consent import TRAINING, SavedConfig, with_consent
from rltrain.config.load import load
from rltrain.config.run_config import RunConfig
from rltrain.errors import CheckpointError, ConfigError
from rltrain.jobs.functions import jobs_of
from rltrain.jobs.resources import Request
from rltrain.storage import files
from rltrain.storage.run_folder import lock
from rltrain.tuning.options import Options, checked_options
from rltrain.tuning.pbt import Population, refuse
from rltrain.tuning.samplers import make_sampler
from rltrain.tuning.search import Search
from rltrain.tuning.space import Space, default_space

SEARCH, FORMAT = "search.json", 1
# Settings of a run that a search decides, and why they cannot be given.
DECIDED = {
    "out": "a search writes its runs into its own folder; use --name",
    "eval_every": "a trial is evaluated after each twentieth of its steps",
    "checkpoint_every": "a checkpoint is written at each evaluation",
    "keep": "a trial keeps its newest checkpoint",
    "stop_return": "trials are compared at the same steps",
    "max_seconds": "trials are compared at the same steps; the search has --budget-seconds",
    "record": "trials cannot share one recording",
    "wandb": "send the runs of the search afterwards with rlsend",
    "mlflow": "send the runs of the search afterwards with rlsend",
    "pause_at": "the scheduler decides where a trial pauses",
}


@dataclass(frozen=True)
class Tuned:
    """The result of a search.

    Attributes:
        folder:   of the search, with all its runs.
        settings: of the winner: the values of the space's settings.
        value:    of the winner in the search: the mean return of its last evaluations, mean over its seeds. It is the
                  largest of many, so it is too high on average.
        winner:   values of the winner with seeds that the search has not used.
        default:  values of the settings without the space's, with the same seeds.
        run:      folder of the winner's first run.
        trials:   number of trials.
        failed:   number of trials that failed.
    """

    folder: Path
    settings: dict[str, Any]
    value: float
    winner: tuple[float, ...]
    default: tuple[float, ...]
    run: Path
    trials: int
    failed: int


def tune(
    space: str | Mapping[str, Any] | None = None,
    *,
    trials: int | None = None,
    name: str | None = None,
    resume: str | Path | None = None,
    trust: bool = False,
    watch: Callable[[Search], None] = lambda _: None,
    config: RunConfig | None = None,
    options: Mapping[str, Any] | None = None,
    cluster: Any = None,
    **settings: Any,
) -> Tuned:
    """Search for settings, and run the best ones again with new seeds, next to the default.

    Args:
        space:    `"lr=1e-5..1e-2:log,batch=64|128"`, or `{"lr": "1e-5..1e-2:log", "gamma": (0.9, 0.999)}`; None: the
                  default space of the algorithm.
        trials:   number of points of the space; for PBT `population` takes its place.
        name:     folder of a new search, which must not exist.
        resume:   folder of a search to continue; only `trials`, `env` and options of resources can be given then.
        trust:    a resumed search that somebody else made may import the code that it names.
        options:  fields of `Options`, as `{"scheduler": "asha", "seeds": 3}`.
        cluster:  trials run on the nodes of this Dask cluster, as `rltrain.submit` takes it. All nodes must see the
                  folder of the search at the same path.
        settings: `algo="ppo", env="CartPole-v1", steps=100_000, ...`, for all runs.

    Raises:
        ConfigError, CheckpointError: the search cannot start; one line.
        RunFailed: all trials failed.
    """
    if resume is not None:
        if space is not None or config is not None or set(settings) - {"env"}:
            raise ConfigError(
                "a search that is resumed keeps its space and its settings; give trials and resources only"
            )
        folder, config, found, chosen = _reopened(Path(resume), settings.get("env"), trust)
        chosen = checked_options({**dataclasses.asdict(chosen), **(options or {}), **_given(trials=trials)})
    else:
        chosen = checked_options({**(options or {}), **_given(trials=trials)})
        if config is None:
            _refuse_decided(settings)
            config = load({"workers": 0, **settings})
        found = Space.of(default_space(config) if space is None else space, config)
        _refuse(config, found, chosen)
    config = config.model_copy(update={"deterministic": config.deterministic or chosen.deterministic})
    jobs: Any = jobs_of(cluster)
    jobs.refuse(Request.of(chosen.cores, chosen.gpus, chosen.memory))
    if resume is None:
        folder = _new_folder(config, found, chosen, name)
    with ExitStack() as closing:
        closing.callback(lock(folder))
        if resume is None:
            _write(folder, config, found, chosen)
        if cluster is not None:
            try:
                closing.enter_context(jobs.requiring(folder / SEARCH))
            except ConfigError:
                if resume is None:  # nothing has run
                    shutil.rmtree(folder, ignore_errors=True)
                raise
        kind = Population if chosen.scheduler == "pbt" else Search
        search = kind(folder, config, found, chosen, jobs, watch)
        winner = search.run()
    return result_of(search, winner)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _refuse_decided(given: Mapping[str, Any]) -> None:
    """ConfigError if a setting is given that the search decides."""
    for name, why in DECIDED.items():
        if given.get(name) is not None:
            raise ConfigError(f"{name}: cannot be given to a search: {why}")


def _refuse(config: RunConfig, space: Space, options: Options) -> None:
    """ConfigError if the configuration, the space and the options do not suit each other."""
    if config.learners > 1 or config.backend == "dask":
        raise ConfigError(
            "the trials of a search have one learner each, and their actors next to it; leave out learners and backend"
        )
    if options.scheduler == "asha" and config.steps < 4:
        raise ConfigError(f"steps {config.steps}: a trial needs some evaluations; ask for more steps")
    if options.scheduler == "pbt":
        refuse(config, space, options)


def _new_folder(config: RunConfig, space: Space, options: Options, name: str | None) -> Path:
    env = "".join(c if c.isalnum() or c in "-_." else "-" for c in config.env_name).strip("-.")[:100]
    folder = Path(name or f"runs/tune-{config.algo}-{env}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(
            f"--name {folder}: exists; continue that search with --resume, or give another name"
        ) from None
    except OSError as error:
        raise ConfigError(f"--name {folder}: cannot be made: {files.reason(error)}") from None
    try:
        make_sampler(options.sampler, space, config.seed, folder)
    except ConfigError:  # nothing has run
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        raise
    return folder


def _write(folder: Path, config: RunConfig, space: Space, options: Options) -> None:
    content = {
        "format": FORMAT,
        "config": config.to_json(),
        "given": sorted(config.settings.model_fields_set),  # all others have the defaults for the kind of action
        "space": space.to_json(),
        "options": dataclasses.asdict(options),
    }
    files.replace_file(folder / SEARCH, files.hashed_json(content) + b"\n")


def _only_given(config: RunConfig, given: list[str]) -> RunConfig:
    """The configuration whose settings are as unset as they were in the new search: a run fills them in."""
    settings = type(config.settings)(
        **{key: getattr(config.settings, key) for key in type(config.settings).model_fields if key in given}
    )
    return config.model_copy(update={"settings": settings})


def read_search(folder: Path) -> tuple[SavedConfig, Space, Options]:
    """What a search's folder says about it; CheckpointError in one line if it cannot be read."""
    if not (folder / SEARCH).exists():
        raise CheckpointError(f"{folder} is not a search's folder: it has no {SEARCH}")
    content, own = files.read_hashed_json(folder / SEARCH, FORMAT)
    try:
        space, options = Space.from_json(content["space"]), Options(**content["options"])
        saved = SavedConfig(content["config"], folder / SEARCH, own)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{folder / SEARCH} does not describe a search of this version") from None
    return saved, space, options


def _reopened(folder: Path, env: Any, trust: bool) -> tuple[Path, RunConfig, Space, Options]:
    saved, space, options = read_search(folder)
    given = files.read_hashed_json(folder / SEARCH, FORMAT).content["given"]
    folder = folder.absolute()
    values = dict(saved.values)
    if env is not None:
        values = {**values, "env": env}
        values.pop("reloadable", None)
    elif not values.get("reloadable", True):
        raise ConfigError(
            f"the environment {values['env']} was given as an object, which is not kept: give it again as env"
        )
    config = _only_given(RunConfig.from_json(values), given)
    return (
        folder,
        with_consent(config, saved, trust, [key for key in TRAINING if env is None or key != "env"]),
        space,
        options,
    )


def result_of(search: Search, winner: Any) -> Tuned:
    """The result of a search that has a winner."""
    state = search.state
    confirmed = {
        who: tuple(event["value"] for _, event in sorted(events.items()) if event["value"] is not None)
        for who, events in state.confirmed.items()
    }
    rung = state.highest(winner)
    value = None if rung is None else winner.value(rung)
    assert value is not None
    return Tuned(
        folder=search.folder,
        settings=search.space.settings(winner.point),
        value=value,
        winner=confirmed["winner"],
        default=confirmed["default"],
        run=search.folder / winner.runs[0],
        trials=len(state.trials),
        failed=sum(bool(trial.error) for trial in state.trials),
    )
