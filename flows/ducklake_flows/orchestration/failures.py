"""How a run that failed for its data ends: in the state Failed with its message, and without a traceback."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect.states import Failed

from ducklake_flows.errors import RunFailed

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")


def ends_failed(run: Callable[P, R]) -> Callable[P, R]:
    """For the function of a flow: end in the state Failed when it raises `RunFailed`.

    An error that is raised would be logged with the traceback of Prefect's engine and of the flow, which says nothing
    about the data. Who calls the flow still gets the error: it is the result of the state.
    """

    @functools.wraps(run)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return run(*args, **kwargs)
        except RunFailed as error:
            state: Any = Failed(message=str(error), data=error)  # Prefect takes a returned state as the run's state
            return state  # type: ignore[no-any-return]

    # Resolved in the module of the flow: Prefect would look for the names of the types in this one.
    told.__signature__ = inspect.signature(run, eval_str=True)  # type: ignore[attr-defined]
    return told
