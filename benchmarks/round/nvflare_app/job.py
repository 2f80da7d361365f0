"""python job.py SITES ROUNDS MODEL_MB SHAPES MARKS CHECKED: run one job in POC mode and end the POC again.

POC mode is NVIDIA FLARE's own "whole federation on one machine": provisioned certificates, mutual TLS over its default
transport, a server and each client as processes of their own, and one more process of each for the job.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from echo_controller import EchoFedAvg
from nvflare.client.config import ExchangeFormat
from nvflare.fuel.utils.constants import FrameworkType
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import ScriptRunner
from nvflare.recipe.poc_env import PocEnv


def main() -> None:
    sites, rounds, model_mb, shapes, marks, checked = sys.argv[1:]
    job = FedJob(name="echo", min_clients=int(sites))
    job.to_server(EchoFedAvg(int(sites), int(rounds), float(model_mb), shapes, marks, checked))
    runner = ScriptRunner(
        script=str(Path(__file__).with_name("echo_client.py")),
        script_args=shapes,
        framework=FrameworkType.NUMPY,
        server_expected_format=ExchangeFormat.NUMPY,
    )
    job.to_clients(runner)
    env = PocEnv(num_clients=int(sites))
    try:
        job_id = env.deploy(job)
        print("result:", env.get_job_result(job_id), flush=True)
    finally:
        env.stop(clean_up=False)


if __name__ == "__main__":
    main()
