"""Reports a dataset once when it becomes overdue, and once when it no longer is.

What was reported is kept on the Prefect server, in one variable per overdue dataset. It is state of the alerts, not of
the data: if it is lost, an overdue dataset is reported again. The variable changes only after the server has accepted
the event, so a check that is interrupted reports twice rather than never. An automation of Prefect that waits for an
event of a publish would not do: events are delivered at most once, and it would forget its wait when it is updated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import VariableCreate

from ducklake_flows.orchestration import events

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.report.overdue import Overdue


@dataclass(frozen=True, slots=True)
class Reported:
    """What a check has reported.

    Args:
        overdue: Keys of the datasets that have become overdue.
        fresh: Keys of those that no longer are.
    """

    overdue: list[str]
    fresh: list[str]


def report(late: Sequence[Overdue], datasets: Iterable[Dataset]) -> Reported:
    """Send an event for each dataset that became overdue since the last check, or no longer is.

    Args:
        late: The datasets that are overdue now.
        datasets: All datasets that were checked. One that has lost its `freshness` is forgotten without an event.

    Raises:
        httpx.HTTPError: the server did not accept an event or a variable.
    """
    now = {each.dataset: each for each in late}
    done = Reported([], [])
    with get_client(sync_client=True) as client:
        for dataset in datasets:
            key, name = dataset.key, f"lake_overdue_{dataset.key}"
            before = client.read_variable_by_name(name)
            if key in now and before is None:
                events.overdue(now[key])
                client.create_variable(VariableCreate(name=name, value=now[key].since.isoformat()))
                done.overdue.append(key)
            elif before is not None and key not in now:
                if dataset.freshness is not None:
                    events.fresh(key, str(before.value))
                    done.fresh.append(key)
                client.delete_variable_by_name(name)
    return done
