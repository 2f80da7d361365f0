"""A custodian's no: to a run that waits, or to one that runs. The same from a terminal and from the page for staff.

Both are words in the gateway's folder, durable on return; the serving gateway hears them within a second, writes them
into its audit log and acts. A yes is another thing: it is signed (`confirmations`).
"""

from __future__ import annotations

from typing import Any

from msfl.gateway.home import Home
from msfl.gateway.record import RunRecord
from msfl.policies.refusals import CannotProceed


def waiting(site: Home, run: str) -> dict[str, Any]:
    """What is shown of a run that waits. Raises CannotProceed."""
    if (shown := site.pending().get(run)) is None:
        raise CannotProceed(f"no run {run} waits here; `msfl gateway pending` lists those that do")
    return shown


def decline(site: Home, run: str, by: str) -> None:
    """Keep a run that waits away from this site. Raises CannotProceed."""
    waiting(site, run)
    site.decline(run, by)


def running(site: Home) -> list[str]:
    """The runs that `stop` can end."""
    parked = site.pending()
    folders = sorted(f for f in site.runs.glob("*") if f.is_dir())
    return [f.name for f in folders if f.name not in parked and RunRecord(f).living()]


def stop(site: Home, run: str, by: str) -> None:
    """End a running run at this site, for good. Raises CannotProceed."""
    if run not in running(site):
        raise CannotProceed(
            f"no run {run} is running here; `msfl gateway audit` shows what ran, and `msfl gateway refuse` keeps away "
            "a run that waits for you"
        )
    site.ask_to_stop(run, by)
