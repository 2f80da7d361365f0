"""What quality control costs per case: from imported images to verdict, pictures and report, in one process.

    python benchmarks/quality.py [--data DIR]

Cases are real 1 mm pairs (openms patients 07 and 26) and the two heads with skull (heads/), which come from different
places, but fit each other as images of one person do. CPU is user and system time, which other work on the machine
distorts little; peak is the process's largest resident memory. The first case pays for loading torch and the brain
extraction's weights.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from msfl.imaging.deidentify.nifti import read_volume, write_volume
from msfl.imaging.quality.control import Settings, check_quality, measure_case
from msfl.imaging.workspace import LESION, Entry, Step, Workspace, now_utc, write_json


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MSFL_TEST_DATA"))
    data = Path(parser.parse_args().data)
    pairs = {
        name: {image: data / "openms" / name / f"{file}.nii.gz" for image, file in files.items()}
        for name in ("patient07", "patient26")
        for files in [{"FLAIR": "FLAIR", "T1w": "T1w", LESION: "lesion_mask"}]
    }
    pairs["heads"] = {image: data / "heads" / f"{image}_head.nii.gz" for image in ("FLAIR", "T1w")}
    with tempfile.TemporaryDirectory() as home:
        workspace = Workspace.of(Path(home), "benchmark")
        for name, files in pairs.items():
            case = workspace.case(name)
            with case.filling("raw") as fresh:
                for image, file in files.items():
                    write_volume(read_volume(file), fresh / f"{image}.nii.gz")
            write_json(case.folder / "source.json", {"patient": name, "scanner": {"id": "d1"}, "split": ""})
            case.record(Entry(Step.IMPORT, now_utc()))
            begin = cpu()
            measure_case(case, Settings(), now_utc())
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"{name:10} {cpu() - begin:6.1f} s of CPU, peak so far {peak:.2f} GiB", flush=True)
        begin = cpu()
        for checked in check_quality(Path(home), "benchmark", hands=0):
            found = ", ".join(f"{f.figure} {f.value:.3g}" for f in checked.findings if f.value is not None)
            print(f"{checked.case:10} {checked.verdict.value}: {found}")
        print(f"verdicts and report: {cpu() - begin:.1f} s of CPU")


if __name__ == "__main__":
    main()
