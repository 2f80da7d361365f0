"""`Run`: one federated run, as the one who asked for it sees it.

A `Run` holds an id and nothing else: a notebook that died finds it again with `msfl.attach(id)`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from msfl.policies.refusals import CannotProceed
from msfl.sdk.credentials import NotConnected

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JsonObject: TypeAlias = dict[str, Any]
OnEvent: TypeAlias = Callable[[str, JsonObject], None]
RECONNECT_S = 2.0
PATIENCE_S = 120.0


class Server(Protocol):
    """What a run needs of the client that made it."""

    def show(self, run_id: str) -> JsonObject: ...

    def abort(self, run_id: str) -> JsonObject: ...

    def pause(self, run_id: str) -> JsonObject: ...

    def resume(self, run_id: str) -> JsonObject: ...

    def watch(self, run_id: str, after: int = 0) -> Iterator[tuple[int, str, JsonObject]]: ...

    def fetch(self, run_id: str, artifact: str, target: Path) -> Path: ...

    def again(self, run_id: str, **changes: Any) -> Run: ...


class SiteRefusal(Exception):
    """The run was refused. `refusals`: each refusing site with its code and as much of the reason as it reveals."""

    def __init__(self, run_id: str, reason: str, refusals: dict[str, tuple[str, str]]) -> None:
        lines = [f"{site} refuses ({code}): {message}" for site, (code, message) in refusals.items()]
        super().__init__("\n".join([f"run {run_id} did not start: {reason}", *lines]))
        self.refusals = refusals


class RunEnded(CannotProceed):
    """The run ended without a result: failed or aborted."""


class Curves:
    """Loss and validation Dice per round and site."""

    def __init__(self, report: JsonObject) -> None:
        self._report = report

    def plot(self) -> Figure:
        from msfl.evaluation.figures import round_curves

        return round_curves(self._report)


class Report:
    """A written report: `path` is its page, beside `report.json` and `figures/`."""

    def __init__(self, path: Path, document: JsonObject) -> None:
        self.path = path
        self.document = document

    def show(self) -> None:
        import webbrowser

        webbrowser.open(self.path.resolve().as_uri())


class Run:
    def __init__(self, run_id: str, server: Server) -> None:
        self.run_id = run_id
        self._server = server

    def __repr__(self) -> str:
        return f"Run({self.run_id!r})"

    def state(self) -> JsonObject:
        """Everything known of the run now: phase, sites, rounds, documents."""
        return self._server.show(self.run_id)

    def events(self) -> Iterator[tuple[str, JsonObject]]:
        """(kind, document) of every event until the run ends; goes on after a cut line.

        Every document has `at`, in seconds of the centre's clock. Two kinds are of the moment and not kept: `Progress`
        of a site, and `Now`, whether the run is paused and what it waits for.
        """
        after, silent_since = 0, time.monotonic()
        while True:
            try:
                for sequence, kind, document in self._server.watch(self.run_id, after):
                    after, silent_since = sequence or after, time.monotonic()
                    yield kind, document
                return
            except NotConnected:
                if time.monotonic() - silent_since > PATIENCE_S:
                    raise
                time.sleep(RECONNECT_S)

    def watch(self) -> JsonObject:
        """Show the run live until it ends. Raises SiteRefusal, RunEnded. Returns the last state."""
        from msfl.sdk.live import show_live

        show_live(self)
        return self._ended(raise_if_refused=True)

    def wait(self, *, raise_if_refused: bool = True) -> JsonObject:
        """As `watch`, without a picture."""
        for _ in self.events():
            pass
        return self._ended(raise_if_refused=raise_if_refused)

    def pause(self) -> JsonObject:
        """Hold the run: what the sites have begun they finish and send, and no new step begins until `resume`.

        Workers stay up and models are kept. Raises NotNow when the run has ended. Returns the state.
        """
        return self._server.pause(self.run_id)

    def resume(self) -> JsonObject:
        """Let a paused run go on, or take an aborted or failed one up again where it stopped. Returns the state.

        The job is signed again, byte for byte the same. A run that had ended is offered to its sites anew, and each
        decides afresh, by its policy of today. Raises NotNow (finished, refused, or not paused), RefusedByGovernance.
        """
        return self._server.resume(self.run_id)

    def extend(self, rounds: int, *, round: int | None = None, **changes: Any) -> Run:
        """A new run of `rounds` more rounds, which starts from this one's best model, or from that of `round`.

        The same job otherwise, but for `changes` (`config`, `min_sites`, … as in `Client.job`); every site decides
        on it afresh. Optimisers start anew. Raises BadJob when that model is not kept any more.
        """
        start = {"run": self.run_id, **({} if round is None else {"round": round})}
        return self._server.again(self.run_id, rounds=rounds, start_from=start, **changes)

    def abort(self) -> JsonObject:
        """End the run; the sites stop their workers. `resume` can take it up again. Returns the state."""
        return self._server.abort(self.run_id)

    def curves(self) -> Curves:
        from msfl.sdk.reporting import report_document

        return Curves(report_document(self.state()))

    def report(self, folder: Path | str | None = None, **more: Any) -> Report:
        """Write `report.html`, `report.json` and `figures/`. `more` as in `msfl.sdk.reporting.report_document`."""
        from msfl.evaluation.report import write_report
        from msfl.sdk.reporting import report_document

        folder = Path(folder) if folder else Path("runs") / self.run_id
        overlays = more.pop("overlays", {})
        state = self.state()
        events = self.events() if state["ended_at"] is not None else ()
        document = report_document(state, events=events, **more)
        return Report(write_report(document, folder, overlays), document)

    def export_nnunet(self, path: Path | str) -> Path:
        """The evaluated model, as stock nnU-Net installs it (`nnUNetv2_install_pretrained_model_from_zip`)."""
        return self._server.fetch(self.run_id, "model", Path(path))

    def _ended(self, *, raise_if_refused: bool) -> JsonObject:
        state = self.state()
        if state["phase"] in ("failed", "aborted"):
            raise RunEnded(f"run {self.run_id} {state['phase']}: {state['reason']}")
        if state["phase"] == "refused" and raise_if_refused:
            raise SiteRefusal(self.run_id, state["reason"], refusals(state))
        return state


def refusals(state: JsonObject) -> dict[str, tuple[str, str]]:
    """Site → (code, message) of every site that refused."""
    found = {}
    for site, member in state["sites"].items():
        if member["standing"] == "refused":
            message = (member["decision"].get("refusal") or {}).get("message") or "the site does not say why"
            found[site] = (member["code"], message)
    return found
