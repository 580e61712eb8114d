"""Runs a recipe under FSDP2 on a CPU: `accelerate launch --config_file cpu2.yaml tests/fsdp_on_cpu.py RECIPE ...`.

accelerate shards on accelerators alone; on a CPU it trains whole models in every process, without a word. Here its
state says that the processes have accelerators. PyTorch's `fully_shard` itself runs on a CPU with gloo.
"""

import gc
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from accelerate import DistributedType, PartialState
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

CONFIG = Path(__file__).parents[1] / "recipes/accelerate/fsdp2.yaml"


def shard_on_cpu() -> None:
    settings = yaml.safe_load(CONFIG.read_text())["fsdp_config"]
    os.environ |= {name.upper(): str(value).lower() for name, value in settings.items()}
    os.environ |= {name: os.environ[name].upper() for name in ("FSDP_AUTO_WRAP_POLICY", "FSDP_STATE_DICT_TYPE")}
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
    begin = PartialState.__init__

    def began(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_XPU

    PartialState.__init__ = began


def sharded_parameters() -> Iterator[str]:
    """Names of parameters of which this process holds a part."""
    for module in gc.get_objects():
        if isinstance(module, FSDPModule):
            yield from (name for name, one in module.named_parameters() if isinstance(one, DTensor))


if __name__ == "__main__":
    shard_on_cpu()
    sys.argv = sys.argv[1:]
    kept = runpy.run_path(sys.argv[0], run_name="__main__")
    sys.stdout.write(f"sharded: {len({*sharded_parameters()})} parameters\n")
