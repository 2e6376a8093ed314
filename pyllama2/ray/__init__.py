"""pyllama2 on a Ray cluster: prompts of a dataset with Ray Data, and the server with Ray Serve.

    map_prompts(dataset, model)     a column of texts for a column of prompts
    deployment(model)               an application for serve.run()
    build                           what `serve run pyllama2.ray:build model=...` calls

It needs pip install "pyllama2[ray]", on every machine of the cluster.
"""

from .deployments import build, deployment
from .prompts import map_prompts

__all__ = ["build", "deployment", "map_prompts"]
