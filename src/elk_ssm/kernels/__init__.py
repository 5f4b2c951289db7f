"""Recurrences in one kernel on a GPU, by Pallas and its Triton lowering."""

from elk_ssm.kernels.registers import Launch
from elk_ssm.kernels.rollout import NAME, Walk, roll_out_lanes, why_not

__all__ = ["NAME", "Launch", "Walk", "roll_out_lanes", "why_not"]
