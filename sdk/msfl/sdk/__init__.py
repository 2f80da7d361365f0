"""The data scientist's side: connect, look, run, watch, read the report.

    import msfl.sdk as msfl

    client = msfl.connect()                       # the federation of your credentials
    client.datasets(); client.releases()
    run = msfl.run_federated(release="ms-lesion-nnunet:1.0.0", datasets=["site-a/ms-trial", "site-b/ms-cohort"])
    run.watch(); run.report().show(); run.export_nnunet("model.zip")

    run = msfl.attach(run.run_id)                 # another day, another notebook: the same run
    run.pause(); run.resume(); run.abort()

Importing this loads no numpy and no torch.
"""

from msfl.sdk.client import BadJob, Client, NotNow, RefusedByGovernance, attach, connect, run_federated
from msfl.sdk.credentials import NotConnected
from msfl.sdk.run import Run, RunEnded, SiteRefusal

__all__ = [
    "BadJob",
    "Client",
    "NotConnected",
    "NotNow",
    "RefusedByGovernance",
    "Run",
    "RunEnded",
    "SiteRefusal",
    "attach",
    "connect",
    "run_federated",
]
