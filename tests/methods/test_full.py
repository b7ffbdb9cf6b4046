"""Full fine-tuning with a pull to the start."""

import pytest
import tiny_families as tiny
import torch

from glm_lightning.types import UserError


def test_the_pull_is_the_gradient_of_the_squared_distance():
    method = tiny.made("full", tiny.network_of("glm").train(), l2_to_start=0.5)
    start = {name: p.detach().clone() for name, p in method.trained().items()}
    torch.manual_seed(0)
    with torch.no_grad():
        for p in method.trained().values():
            p += torch.randn_like(p)
            p.grad = torch.ones_like(p)
    distance = sum(0.25 * (p - start[name]).square().sum() for name, p in method.trained().items())
    expected = torch.autograd.grad(distance, list(method.trained().values()))
    method.on_before_optimizer_step(None)
    for p, pull in zip(method.trained().values(), expected, strict=True):
        torch.testing.assert_close(p.grad, 1 + pull)
    assert method.num_bytes_kept == sum(value.nbytes for value in start.values())


def test_a_run_stays_nearer_and_resumes_the_same(train, tiny_glm):
    from safetensors.torch import load_file

    start = load_file(tiny_glm / "model.safetensors")
    free, pulled = (
        load_file(train(name, "method=full", f"method.l2_to_start={pull}").last / "trained.safetensors")
        for name, pull in (("free", 0), ("pulled", 10))
    )

    def distance(values):
        return sum((values[f"network.{name}"].float() - value).square().sum() for name, value in start.items())

    assert distance(pulled) < 0.9 * distance(free)
    half = train("half", "method=full", "method.l2_to_start=10", "trainer.max_steps=3", "scheduler=constant")
    whole = train("whole", "method=full", "method.l2_to_start=10", "scheduler=constant")
    import glm_lightning as gl

    gl.train([f"resume={half.path}", "trainer.max_steps=6"])
    one, other = (load_file(run.last / "trained.safetensors") for run in (half, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_pulls_and_never_pushes():
    with pytest.raises(UserError, match="must be 0 or more"):
        tiny.made("full", tiny.network_of("glm"), l2_to_start=-1.0)
