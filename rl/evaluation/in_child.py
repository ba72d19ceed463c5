"""`rleval` loads and plays in a child process: an environment that hangs, or ends its process, gives one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rltrain.config.consent import import_code
from rltrain.envs.errors import Watch
from rltrain.errors import RunFailed
from rltrain.setup import task_process
from rltrain.setup.task_process import EnvLost, TaskProcess
from rltrain.system.imports import no_collection

if TYPE_CHECKING:
    from rltrain.evaluation.evaluate import Evaluation

LOAD_SECONDS = 600.0  # allowed for the imports of torch and of the user's code, and for the policy


@dataclass(frozen=True)
class Request:
    """The arguments of `rleval`."""

    path: str
    imports: Sequence[str]  # modules and files to import first
    settings: dict[str, Any]  # keywords of `rltrain.evaluate`
    name: str = "the run"  # in messages


class Player:
    """The tasks of the child, in this order.

    Args:
        watch: gets the name of each call of the environment before it is made.
    """

    def __init__(self, request: Request, watch: Watch) -> None:
        self._request, self._watch = request, watch

    def load(self) -> tuple[str, float]:
        """Load the policy. Returns the name of its environment, and the seconds that one call of it may take."""
        with no_collection():
            from rltrain.evaluation.evaluate import named_by_run
            from rltrain.evaluation.policy import load_for

        settings = self._request.settings
        import_code(self._request.imports)
        uses = named_by_run(settings.get("env"), settings.get("env_args"))
        self._trained = load_for(self._request.path, settings.pop("best", False), settings.get("trust", False), uses)
        return self._trained.spec.id, self._trained.config.actor_timeout

    def play(self) -> Evaluation:
        from rltrain.evaluation.evaluate import evaluate_watched

        return evaluate_watched(self._watch, self._trained, **self._request.settings)


def evaluate_in_child(path: str, imports: Sequence[str], settings: dict[str, Any]) -> Evaluation:
    """As `rltrain.evaluate(path, **settings)`, after the import of the user's code. For commands only.

    Raises:
        RunFailed: the environment hangs, or has ended its process; one line.
    """
    request = Request(path, imports, settings)
    task_process.may_fork()
    if task_process.start_method() != "fork":  # this process has imported torch, or the system cannot fork
        player = Player(request, lambda call: None)
        player.load()
        return player.play()
    with TaskProcess(Player, request, LOAD_SECONDS) as child:
        try:
            child.start("load")
            name, seconds = child.result()
            child.subject, child.timeout = replace(request, name=name), seconds
            child.start("play")
            evaluation: Evaluation = child.result()
        except EnvLost as lost:
            raise RunFailed(str(lost)) from None
    return evaluation
