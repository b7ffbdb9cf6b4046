"""One of several ranks: run the configurations of a file one by one, and write down what each holds and sends."""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from lightning.pytorch import Callback
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import glm_lightning
from glm_lightning.strategies import own_part
from glm_lightning.training import build
from glm_lightning.types import whole_shape


class Watch(Callback):
    """Counts numbers: those of the network that this rank holds, those that DDP sends, and those that are gathered."""

    def __init__(self):
        self.counts = {"own": 0, "whole": 0, "optimizer": 0, "at_start": 0, "buckets": [], "gathered": 0}
        broadcast, gather = dist._broadcast_coalesced, dist.all_gather_single

        def counting(group, tensors, *args):
            self.counts["at_start"] += sum(tensor.numel() for tensor in tensors)
            broadcast(group, tensors, *args)

        def gathering(output, *args, **options):
            self.counts["gathered"] += output.numel()
            return gather(output, *args, **options)

        dist._broadcast_coalesced, dist.all_gather_single = counting, gathering

    def on_train_start(self, trainer, pl_module):
        parameters = list(pl_module.parameters())
        self.counts["own"] = sum(own_part(parameter).numel() for parameter in parameters)
        self.counts["whole"] = sum(whole_shape(parameter).numel() for parameter in parameters)
        if isinstance(trainer.model, DistributedDataParallel):
            trainer.model.register_comm_hook(None, self._sent)

    def _sent(self, state, bucket):
        self.counts["buckets"].append(bucket.buffer().numel())
        return allreduce_hook(None, bucket)

    def on_train_end(self, trainer, pl_module):
        states = [state for each in trainer.optimizers for state in each.state.values()]
        self.counts["optimizer"] = sum(own_part(state["exp_avg"]).numel() for state in states)


if __name__ == "__main__":
    watchers = build._watchers
    for overrides in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        watch = Watch()
        build._watchers = lambda config, watch=watch: watchers(config) | {"watch": watch}
        run = glm_lightning.train(overrides)
        path = run.path / f"counts.{dist.get_rank()}.json"
        path.write_text(json.dumps(watch.counts), encoding="utf-8")
