"""A Ray cluster for the tests of this folder that need one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.tiny_llama import CHATML, write_tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.bin"
    return write_tiny(path, "bpe", template=CHATML, max_seq_len=1024, n_layers=4)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a cluster of three nodes with a CPU each, to which this process is connected."""
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster

    arguments = {"num_cpus": 1, "object_store_memory": 100 << 20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYLLAMA2_NUM_THREADS", "1")
        cluster = Cluster(initialize_head=True, head_node_args=arguments)
        for _ in range(2):
            cluster.add_node(**arguments)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()
