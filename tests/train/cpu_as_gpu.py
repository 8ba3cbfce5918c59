"""`vblora-lab` where accelerate takes the CPU, and gloo, for what it is used to on GPUs.

It runs FSDP and DeepSpeed on GPUs alone; both of them do run on a CPU.
"""

import sys

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState

from vblora_lab.cli import main


def on_cpu(state):
    state.device = torch.device("cpu")


def never_cpu(kind):
    begin = kind.__init__

    def as_if_on_a_gpu(self, *args, **more):
        begin(self, *args, **{**more, "cpu": False})

    kind.__init__ = as_if_on_a_gpu


if __name__ == "__main__":
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = on_cpu
    never_cpu(PartialState)
    never_cpu(AcceleratorState)
    sys.exit(main(sys.argv[1:]))
