"""What is minimised, as pure functions of tensors, one family a file. Shapes as in `types`."""

from glm_lightning.losses.cross_entropy import TokenSums, linear_cross_entropy, projected_cross_entropy

__all__ = ["TokenSums", "linear_cross_entropy", "projected_cross_entropy"]
