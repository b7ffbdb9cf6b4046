"""What only a GPU can show: its kernels against the CPU's figures. Skipped where there is none."""

from __future__ import annotations

import copy
import traceback
import warnings

import pytest
import torch
from packed_rows import CONFIGS, SAMPLES, network
from packed_rows import batch as packed
from tiny_families import batch, ids, logits, network_of, quantized
from tiny_runs import dying, largest_difference, training_losses, validation_losses, weights

import glm_lightning as gl
from glm_lightning.callbacks import Throughput
from glm_lightning.methods.base import Method
from glm_lightning.models import liger, training_attention
from glm_lightning.objectives.supervised import token_sums
from glm_lightning.runs import RunFolder
from glm_lightning.types import UserError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
GPU = "trainer.accelerator=gpu"


@pytest.fixture(autouse=True)
def exact_products():
    torch.set_float32_matmul_precision("highest")


# -- runs


@pytest.mark.parametrize("method", ["lora", "full", "freeze", "ptuning_v2", "prompt_tuning", "ia3"])
def test_six_steps_are_those_of_the_cpu(train, method):
    # devices draw what is dropped from random numbers of their own
    knobs = [f"method={method}", *(["method.dropout=0"] if method == "ptuning_v2" else [])]
    ours, theirs = train("gpu", *knobs, GPU), train("cpu", *knobs)
    # rotary angles are of float32 in every precision
    assert largest_difference(weights(ours), weights(theirs)) < 1e-5
    assert validation_losses(ours) == pytest.approx(validation_losses(theirs), rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        ("trainer.precision=auto",),
        ("trainer.precision=16-mixed",),
        ("trainer.precision=bf16-mixed", "data.packing=true"),
        ("trainer.precision=bf16-mixed", "model.compile=true"),
        ("trainer.precision=bf16-mixed", "model.gradient_checkpointing=true"),
        ("trainer.precision=bf16-mixed", "trainer.strategy=ddp"),
        ("trainer.precision=bf16-mixed", "method=adalora"),
        ("trainer.precision=bf16-mixed", "method=full", "optimizer=adamw_8bit"),
        ("trainer.precision=bf16-mixed", "method=ptuning_v2", "data.packing=true"),
    ],
    ids=lambda changes: " ".join(each.rpartition(".")[2] for each in changes),
)
def test_sixteen_bits_learn_what_float32_learns(train, changes):
    rate = ("optimizer.lr=5e-2", "scheduler.warmup=0")
    method = next((each for each in changes if each.startswith("method=")), "method=lora")
    together = [each for each in changes if "packing" in each]
    exact = training_losses(train("exact", "trainer.precision=32-true", method, *rate, *together))
    rounded = training_losses(train("rounded", *changes, *rate, GPU))
    assert rounded == pytest.approx(exact, rel=1e-3)
    assert rounded != exact
    assert exact[0] - exact[-1] > 3e-3 * exact[0]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_qlora_learns_as_on_the_cpu(train, kind):
    given = ("method=qlora", f"quantize={kind}", "trainer.precision=32-true")
    assert training_losses(train("gpu", *given, GPU)) == pytest.approx(training_losses(train("cpu", *given)), rel=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_that_died_goes_on_to_the_same_bit(train, tmp_path, precision):
    given = (GPU, f"trainer.precision={precision}", "method.dropout=0.2", "callbacks.checkpoints.every_n_steps=1")
    whole = train("whole", *given)
    with dying(3):
        train("broken", *given)
    resumed = gl.train([f"resume={tmp_path / 'broken'}"])
    assert largest_difference(weights(whole), weights(RunFolder(resumed.path))) == 0


def test_the_host_waits_for_the_device_once_a_step(train, monkeypatch):
    """To learn whether the gradient is finite; and where something is logged, here nowhere."""
    waits = []

    def note(message, category, filename, lineno, file=None, line=None):
        if "synchroniz" in str(message):
            waits.append([f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_stack()[-14:]])

    started, ended = Method.on_train_batch_start, Throughput.on_train_end

    def begin(self, batch, batch_idx):
        if self.trainer.global_step == 2:
            torch.cuda.set_sync_debug_mode("warn")
        return started(self, batch, batch_idx)

    def end(self, trainer, pl_module):
        torch.cuda.set_sync_debug_mode("default")
        return ended(self, trainer, pl_module)

    monkeypatch.setattr(Method, "on_train_batch_start", begin)
    monkeypatch.setattr(Throughput, "on_train_end", end)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        train(
            *("run", GPU, "trainer.precision=bf16-mixed", "trainer.log_every_n_steps=100", "data.val=null"),
            *("callbacks.checkpoints=null", "callbacks.early_stopping=null", "trainer.accumulate_grad_batches=2"),
        )
    torch.cuda.set_sync_debug_mode("default")
    # transformers asks before each micro-batch whether samples share a row
    known = ("set_sync_debug_mode", "find_packed_sequence_indices", "_refuse_endless")
    other = [each for each in waits if not any(name in frame for name in known for frame in each)]
    assert not other, "\n\n".join("\n".join(each) for each in other[:6])
    assert sum("_refuse_endless" in frame for each in waits for frame in each) == 4


def test_a_device_without_room_is_told_in_numbers(train):
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(24 * 2**20 / total)
    try:
        with pytest.raises(UserError, match=r"(?s)out of memory .*cuda:0: .* GiB, peak .*change one of: "):
            train("run", GPU, "method=full", "data.max_tokens=65536", "data.batch_size=48")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# -- kernels


def test_packed_rows_by_flash_kernels_are_single_samples(monkeypatch):
    calls = []
    original = training_attention._varlen
    monkeypatch.setattr(training_attention, "_varlen", lambda *given: calls.append(1) or original(*given))
    exact = network(CONFIGS["glm"], training_attention.NAME)
    rounded = copy.deepcopy(exact).to("cuda").bfloat16()
    wanted = gradients(exact, [[s] for s in SAMPLES], 24)
    alone, together = gradients(rounded, [[s] for s in SAMPLES], 24), gradients(rounded, [SAMPLES], 48)
    assert calls
    for name, gradient in wanted.items():
        assert off(together[name], gradient) < 2 * off(alone[name], gradient) + 0.01, name


def gradients(made, rows, width):
    made.zero_grad()
    device = next(made.parameters()).device
    token_sums(made, packed(rows, width).to(device)).total.backward()
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def off(gradient, wanted):
    return float((gradient.cpu().double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("family", ["glm", "glm4", "glm4_moe", "llama"])
def test_ligers_kernels_are_the_networks_own(family):
    pytest.importorskip("liger_kernel")
    plain = network_of(family).to("cuda").train()
    kernels = copy.deepcopy(plain)
    liger.apply(kernels)
    results = []
    for each in (plain, kernels):
        token_sums(each, batch().to("cuda")).total.backward()
        results.append({name: p.grad for name, p in each.named_parameters() if p.grad is not None})
    for name, wanted in results[0].items():
        torch.testing.assert_close(results[1][name], wanted, rtol=2e-3, atol=2e-4 * float(wanted.abs().max() + 1e-6))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_network_says_on_a_gpu_what_it_says_on_a_cpu(kind, tmp_path):
    theirs = logits(quantized("glm", kind, tmp_path / "there", device="cpu"))
    ours = logits(quantized("glm", kind, tmp_path / "here", device="cuda"), ids(seed=9).to("cuda"))
    exact = logits(network_of("glm"))
    assert (ours.cpu() - exact).abs().max() < 1.5 * (theirs - exact).abs().max()


def test_answers_are_those_of_the_cpu():
    questions = [[{"role": "user", "content": text}] for text in ("类型#裙*材质#棉*风格#简约", "你好")]
    answers = {}
    for device in ("cuda", "cpu"):
        glm = gl.load("demo", device=device, dtype="float32")
        answers[device] = [glm.generate(each, temperature=0, max_new_tokens=24) for each in questions]
    assert answers["cuda"] == answers["cpu"]
