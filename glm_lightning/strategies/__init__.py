"""How a network lies on several devices: whole on each, or in parts."""

from lightning.pytorch.strategies import Strategy

from glm_lightning.strategies.parts import assign, own_part, whole
from glm_lightning.strategies.replicated import Replicated
from glm_lightning.strategies.sharded import Sharded
from glm_lightning.strategies.zero import Zero

__all__ = ["Replicated", "Sharded", "Zero", "assign", "own_part", "shares_weights", "whole"]


def shares_weights(strategy: Strategy) -> bool:
    """Whether each rank holds a part of every weight, so that all must run as many forward passes."""
    return isinstance(strategy, Sharded) or (isinstance(strategy, Zero) and strategy.stage == 3)
