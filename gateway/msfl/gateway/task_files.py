"""What a task takes in and what it gives out at a site, file by file.

    inputs    download sealed ▸ open into a private file ▸ JSON joins the document, tensors become a file in the inbox
    output    collect from the outbox ▸ egress gate ▸ seal in the same pass ▸ `result.sealed`, which may be uploaded

Nothing is half sent: the sealed file exists only after the last check. What fails raises `CannotDo` with a code that
may leave the site.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from msfl.gateway.egress import CheckedTensors, check_document, template_of
from msfl.gateway.home import Home
from msfl.gateway.judge import Accepted
from msfl.policies.decide import allowed_outputs
from msfl.policies.refusals import Code, Refusal, Refused
from msfl.protos.messages import Input, TaskOrder
from msfl.protos.parcel import BadParcel, pack, unpack
from msfl.protos.sealing import SealBroken, StreamHeader, open_sealed, run_key, seal
from msfl.protos.tasklink import Result
from msfl.protos.tensors import BadTensors
from msfl.runtime.collect import collect

JsonObject: TypeAlias = dict[str, Any]
Download: TypeAlias = Callable[[str, Path], int]


class CannotDo(Exception):
    """A step of a task failed for a reason that may leave the site."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


class TaskFiles:
    """The files of one run at one site. `folder` is the run's own, `folder/box` all of it that the worker can see."""

    def __init__(self, home: Home, run_id: str, site: str, folder: Path) -> None:
        self._home = home
        self._run_id = run_id
        self._site = site
        self._folder = folder
        self._box = folder / "box"
        self.inbox = self._box / "inbox"

    def take_inputs(self, order: TaskOrder, download: Download) -> tuple[JsonObject, dict[str, str], int]:
        """Fetch and open every sealed input. JSON joins the task's document, tensors become files in the inbox."""
        document = dict(order.document)
        files: dict[str, str] = {}
        received = 0
        for i, wanted in enumerate(order.inputs):
            sealed = self._folder / f"input-{i}.sealed"
            sealed.unlink(missing_ok=True)
            received += download(wanted.key, sealed)
            bare = f"{i:03d}.safetensors"
            said, tensors = self._open(wanted, sealed, self.inbox / bare)
            sealed.unlink()
            document.update(said)
            if tensors:
                files[wanted.name] = bare
        return document, files, received

    def _open(self, wanted: Input, sealed: Path, target: Path) -> tuple[JsonObject, int]:
        header = StreamHeader(
            run_id=self._run_id,
            task_id=wanted.task_id,
            round=wanted.round,
            site=self._site,
            attempt=1,
            direction="down",
            artifact=wanted.artifact,
        )
        opened = sealed.with_suffix(".opened")
        try:
            with open(sealed, "rb") as source, open(opened, "w+b", opener=_private) as plain:
                open_sealed(self._key(), header, source, plain)
                plain.seek(0)
                with open(target, "wb", opener=_private) as tensors:
                    document, size = unpack(plain, tensors)
        except (SealBroken, BadParcel) as error:
            target.unlink(missing_ok=True)
            raise CannotDo("input_broken", str(error)) from error
        finally:
            opened.unlink(missing_ok=True)
        if not size:
            target.unlink()
        return document, size

    def gate_and_seal(
        self,
        accepted: Accepted,
        order: TaskOrder,
        attempt: int,
        asked: Mapping[str, Any],
        result: Result,
        template: Path | None,
    ) -> Path:
        """The sealed result, all of it checked. Raises CannotDo."""
        rules = allowed_outputs(accepted.policy)
        document = {k: v for k, v in result.document.items() if k != "peak_rss_mib"}
        passed = check_document(order.verb, document, accepted.release.statement.outputs, rules)
        if isinstance(passed, Refusal):
            raise CannotDo(passed.code.value, passed.message)
        may_send = template is not None and (asked.get("stream") != "local" or asked.get("send_weights") is True)
        if set(result.files) - ({"weights"} if may_send else set()):
            raise CannotDo(Code.OUTPUT_BLOCKED.value, f"the worker left files that {order.verb} may not send")
        header = StreamHeader(
            run_id=self._run_id,
            task_id=order.task_id,
            round=order.round,
            site=self._site,
            attempt=attempt,
            direction="up",
            artifact="result",
        )
        sealed = self._folder / "result.sealed"
        copy = self._folder / "result.safetensors"
        try:
            with open(sealed, "wb", opener=_private) as out:
                if "weights" in result.files:
                    assert template is not None
                    collect(self._box / "outbox", result.files["weights"], copy, rules.weights_max_bytes)
                    with open(copy, "rb", buffering=0) as private:
                        checked = CheckedTensors(private, template_of(template), rules.weights_max_bytes)
                        seal(self._key(), header, pack(passed, checked), out, salt=secrets.token_bytes(32))
                else:
                    seal(self._key(), header, pack(passed, None), out, salt=secrets.token_bytes(32))
        except (Refused, BadTensors) as error:
            sealed.unlink(missing_ok=True)
            raise CannotDo(Code.OUTPUT_BLOCKED.value, str(error)) from error
        finally:
            copy.unlink(missing_ok=True)
        return sealed

    def clear(self) -> None:
        """Nothing of a task stays in the boxes: the next one starts with empty ones."""
        for leftover in (*self.inbox.iterdir(), *(self._box / "outbox").iterdir()):
            leftover.unlink()

    def _key(self) -> bytes:
        return run_key(
            (self._folder / "run.secret").read_bytes(), self._home.secret("site.key"), self._run_id, self._site
        )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
