"""Losses of a chosen answer against a rejected one, one value a pair, by log-probabilities of whole answers."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo(margin: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta h), with h (P,) the margin of log-ratios to the reference, chosen minus rejected.

    Rafailov et al. 2023, arXiv:2305.18290, equation 7. With ``label_smoothing`` the pair is the wrong way round with
    that probability (Mitchell 2023, "A note on DPO with noisy preferences").
    """
    return _preferred(beta * margin, label_smoothing)


def ipo(margin: Tensor, *, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2, with h (P,) the margin of log-ratios to the reference, of means over each answer's tokens.

    Azar et al. 2023, arXiv:2310.12036, equation 17; the mean over tokens is that of its authors' own experiments.
    """
    return (margin - 1 / (2 * beta)) ** 2


def simpo(margin: Tensor, *, beta: float, gamma: float, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta h - gamma), with h (P,) the margin of mean log-probabilities of a token; no reference.

    Meng et al. 2024, arXiv:2405.14734, equation 6.
    """
    return _preferred(beta * margin - gamma, label_smoothing)


def orpo(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """-beta log sigmoid(log odds(chosen) - log odds(rejected)) of mean log-probabilities (P,); no reference.

    Hong et al. 2024, arXiv:2403.07691, equations 6 and 7, whose lambda is ``beta``; the likelihood of the chosen answer
    is a term of its own there.
    """
    return -beta * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _preferred(logit: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * logsigmoid(logit) - label_smoothing * logsigmoid(-logit)


def _log_odds(log_prob: Tensor) -> Tensor:
    """log(p / (1 - p)); of a certain answer the largest that its type can tell."""
    return log_prob - (-log_prob.clamp(max=-1e-7).expm1()).log()
