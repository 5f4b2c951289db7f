"""Programs taken apart, so that an accelerator runs them in few kernels.

Recurrences in one kernel by Pallas and its Triton lowering (`rollout`), and functions
of small matrices written out for a compiler that fuses (`entries`).
"""

from elk_ssm.kernels.registers import Launch
from elk_ssm.kernels.rollout import NAME, Walk, roll_out_lanes, why_not

__all__ = ["NAME", "Launch", "Walk", "roll_out_lanes", "why_not"]
