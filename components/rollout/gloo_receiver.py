"""vLLM's side of a broadcast of weights between CPUs; vLLM loads it in its own processes."""

from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import TCPStore
from torch.distributed import ProcessGroupGloo
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo

from components.rollout.broadcast import here

PATIENCE = timedelta(minutes=30)  # of one weight; a trainer that is gone is seen at once


class GlooReceiver(NCCLWeightTransferEngine):
    """vLLM's engine for NCCL over a group of gloo instead."""

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        """Join the group that the trainer has opened at this address."""
        parallel = self.parallel_config
        within = parallel.data_parallel_index * parallel.world_size + parallel.rank  # among this server's processes
        rank = init_info.rank_offset + within
        assert init_info.master_address is not None
        assert init_info.master_port is not None
        self.store = TCPStore(
            init_info.master_address, init_info.master_port, init_info.world_size, timeout=PATIENCE,
            wait_for_workers=False,
        )  # fmt: skip
        self.store.set(here(rank), "")
        self.group = ProcessGroupGloo(self.store, rank, init_info.world_size, PATIENCE)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take the weights that a request describes, in the form of the request's body."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Take weights one by one, in the order described, and load each at once."""
        described = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        for name, dtype, shape in described:
            weight = torch.empty(shape, dtype=getattr(torch, dtype))
            self.group.broadcast(weight, 0).wait()
            self.model.load_weights([(name, weight)])

    def shutdown(self) -> None:
        """Leave the group."""
        self.group = self.store = None
