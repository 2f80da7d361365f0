# %% [markdown]
# A federated run from a notebook. Every `# %%` starts a cell; the file also runs as a script.
#
# It needs a federation that is up, and your credentials at `MSFL_CREDENTIALS` or `~/.config/msfl/credentials.json`.
# "The same code in a notebook" in the README says how to bring the demo's federation up again.

# %% Connect and look: nothing is asked of any site yet.
import os
import time
from pathlib import Path

from rich.console import Console

import msfl.sdk as msfl

console = Console()
client = msfl.connect()
give_up = time.monotonic() + 60
while len(present := [row for row in client.datasets() if row["present"]]) < 3 and time.monotonic() < give_up:
    time.sleep(1)  # gateways that have just been started need a moment
releases = {row["release"]: row for row in client.releases() if row["status"] == "published"}
release, row = next(iter(releases.items()))
out = Path(os.environ.get("MSFL_OUT", "runs/example"))
arguments = {
    "release": release,
    "datasets": [row["ref"] for row in present],
    "evaluate_only": [row["ref"] for row in present if not row["n_train"]],
    "profile": "demo",  # "full" is stock nnU-Net: days on a CPU
    "rounds": 2,
    "config": {"batches_per_epoch": 5},  # what differs from the profile; every site's policy bounds it
    "baseline": "local",  # each site also trains a model of its own, with the same budget
    "min_sites": 2,
    "seed": 1,
    "name": "example",
}

# %% Ask first: every site says what it would answer, and why. Nothing starts, nothing is spent.
asked = client.explain(client.job(**arguments))
for site, answer in asked.items():
    refusal = answer.get("refusal") or {}
    console.print(f"{site}: {answer['standing']} {refusal.get('code', '')}")

# %% Run. Raises msfl.SiteRefusal when too few sites accept: it names each site and its reason.
run = msfl.run_federated(**arguments)
run.watch()  # phase, round, loss and validation Dice of each site, until the run ends

# %% Read. A notebook that died finds its run again: msfl.attach("<run id>").
out.mkdir(parents=True, exist_ok=True)
run.curves().plot().savefig(out / "curves.png")
report = run.report(out)  # report.html, report.json, figures/; report.show() opens the page
run.export_nnunet(out / "model.zip")  # nnUNetv2_install_pretrained_model_from_zip takes it
