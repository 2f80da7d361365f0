"""From a checked folder to the dataset's record: what the site's gateway knows of the data without opening an image.

A record is made only of a folder without problems. It lists the hash of every file, so that a file that changes later
is another version of the dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from msfl.imaging.datasets import DatasetReport, check_dataset, dataset_files, dataset_version
from msfl.imaging.workspace import write_whole
from msfl.policies.documents import DatasetRecord
from msfl.policies.encoding import encode, load_json

MAX_RECORD_BYTES = 64 << 20


class NotADataset(Exception):
    """`report.problems` says, a line each, what is wrong."""

    def __init__(self, report: DatasetReport) -> None:
        super().__init__("\n".join(problem.line() for problem in report.problems))
        self.report = report


def make_record(
    folder: Path,
    *,
    site: str,
    dataset_id: str,
    kind: Literal["generated", "user"],
    description: str = "",
    test_set: str | None = None,
    quality: Mapping[str, int] | None = None,
    overrules: str | None = None,
) -> DatasetRecord:
    """Check the folder and describe it. Raises NotADataset."""
    report = check_dataset(folder)
    if not report.ok:
        raise NotADataset(report)
    files = dataset_files(folder)
    return DatasetRecord(
        id=dataset_id,
        site=site,
        version=dataset_version(files),
        channel_names=report.channel_names,
        labels=dict(report.labels),
        n_train=len(report.train_cases),
        n_test=len(report.test_cases),
        spacing_mm=report.spacing_median_mm or (),
        files={name: f"sha256:{digest}" for name, digest in files.items()},
        kind=kind,
        description=description,
        test_set=test_set,
        quality=quality or {},
        overrules=overrules,
    )


def publish_record(record: Path, data: Path, home: Path) -> DatasetRecord:
    """Put a record, and where its data lie, into the catalogue of a gateway's home. Raises Malformed."""
    published = load_json(record.read_bytes(), DatasetRecord, record.name, max_bytes=MAX_RECORD_BYTES)
    show(published, data, home)
    return published


def show(published: DatasetRecord, data: Path, home: Path) -> None:
    """From now on the gateway of this home offers the dataset."""
    catalogue = home / "datasets"
    # The place first: a record that the gateway can see always has one.
    write_whole(catalogue / f"{published.id}.path", str(data.resolve()).encode())
    write_whole(catalogue / f"{published.id}.json", encode(published))
