"""terrazzo on Ray Serve: the same endpoints, replicas placed and counted by Ray.

TERRAZZO_MODELS="/models/reviews /models/minilm" serve run deploy.ray_serve:app
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from ray import serve

#: Cores of a replica: what Ray reserves, and what its models use.
CORES = int(os.environ.get("TERRAZZO_CORES", "2"))


def build() -> object:
    """The application of one replica, with models of its own."""
    from terrazzo.serve.app import create_app
    from terrazzo.serve.models import Models
    from terrazzo.serve.settings import Settings

    settings = Settings(threads=CORES)
    folders = os.environ["TERRAZZO_MODELS"].split()
    with ThreadPoolExecutor(1) as beside:  # the replica's own event loop is running already
        models = beside.submit(asyncio.run, Models.open(folders, settings)).result()
    return create_app(models, settings)


# Batches form inside a replica, so it must be sent many requests at a time: Ray's default is five.
app = serve.deployment(
    serve.ingress(build)(),
    name="terrazzo",
    ray_actor_options={
        "num_cpus": CORES,
        "runtime_env": {"env_vars": {"TERRAZZO_MODELS": os.environ["TERRAZZO_MODELS"]}},
    },
    max_ongoing_requests=256,
    autoscaling_config={"min_replicas": 2, "max_replicas": 8, "target_ongoing_requests": 64},
).bind()
