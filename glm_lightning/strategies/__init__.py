"""How a network lies on several devices: whole on each, or in parts."""

from glm_lightning.strategies.parts import assign, own_part, whole
from glm_lightning.strategies.replicated import Replicated
from glm_lightning.strategies.sharded import Sharded

__all__ = ["Replicated", "Sharded", "assign", "own_part", "whole"]
