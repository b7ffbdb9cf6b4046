"""Losses of pairs by hand, as the papers write them."""

import math

import pytest
import torch

from glm_lightning.losses import preference as losses


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


MARGINS = [-3.0, 0.0, 0.4, 7.0]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo(smoothing):
    ours = losses.dpo(torch.tensor(MARGINS), beta=0.3, label_smoothing=smoothing)
    theirs = [-(1 - smoothing) * math.log(sigmoid(0.3 * h)) - smoothing * math.log(sigmoid(-0.3 * h)) for h in MARGINS]
    torch.testing.assert_close(ours, torch.tensor(theirs))


def test_ipo():
    torch.testing.assert_close(
        losses.ipo(torch.tensor(MARGINS), beta=0.25), torch.tensor([(h - 2.0) ** 2 for h in MARGINS])
    )


def test_simpo():
    ours = losses.simpo(torch.tensor(MARGINS), beta=2.0, gamma=0.5)
    torch.testing.assert_close(ours, torch.tensor([-math.log(sigmoid(2.0 * h - 0.5)) for h in MARGINS]))


def test_orpo():
    chosen, rejected = [-0.1, -2.0, -0.7], [-0.5, -0.2, -0.7]

    def odds(log_p):
        return math.exp(log_p) / (1 - math.exp(log_p))

    theirs = [-0.4 * math.log(sigmoid(math.log(odds(c) / odds(r)))) for c, r in zip(chosen, rejected, strict=True)]
    ours = losses.orpo(torch.tensor(chosen), torch.tensor(rejected), beta=0.4)
    torch.testing.assert_close(ours, torch.tensor(theirs))


def test_orpo_of_a_certain_answer_is_a_number():
    value = losses.orpo(torch.zeros(1), torch.tensor([-1.0]), beta=1.0)
    assert value.isfinite().all()
