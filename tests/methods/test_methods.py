"""What every method of conf/method/ promises, on every family, without a trainer."""

import copy

import peft
import pytest
import torch
from tiny_families import (
    FAMILIES,
    MIXTURES,
    batch,
    ids,
    learn,
    logits,
    made,
    network_of,
    node_of,
    quantized,
    skeleton_of,
)
from tiny_runs import ROOT
from transformers import AutoModelForCausalLM

from glm_lightning.inference.generation import generate, stream
from glm_lightning.methods import base as methods_base
from glm_lightning.models import prefix
from glm_lightning.objectives.sft import SFT
from glm_lightning.types import UserError

# peft 0.21 says so of every AdaLoRA adapter that it loads, and uses the keys all the same
pytestmark = pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")

METHODS = sorted(file.stem for file in (ROOT / "conf" / "method").glob("*.yaml"))

ELSEWHERE = {"prompt_tuning", "ptuning_v2"}
"""Methods that put something in front of a row, and so do not begin at the base."""

REFUSED = {("prompt_tuning", "chatglm"), *(("qlora", family) for family in MIXTURES)}
"""What cannot work, and is refused."""

CASES = [(m, f) for m in METHODS for f in FAMILIES if (m, f) not in REFUSED]


def base_name(name, base):
    """The name that the base has for a parameter of an adapted network, or the name itself."""
    plain = name.replace(".base_layer.", ".")
    names = (plain, plain.removeprefix("base_model."), plain.removeprefix("base_model.model."))
    return next((candidate for candidate in names if candidate in base), name)


class Trained:
    """A method after three steps, its base, and what was before the first."""

    def __init__(self, name, family, folder):
        self.name, self.family, self.folder = name, family, folder
        quantize = node_of(name).quantize
        fresh = network_of(family) if quantize is None else quantized(family, quantize, folder / "base")
        self.base = copy.deepcopy(fresh).eval()
        self.method = made(name, fresh)
        self.network = self.method.network
        self.before = logits(self.network)
        self.state = {n: p.detach().clone() for n, p in self.network.named_parameters()}
        self.losses = learn(self.method)

    def saved(self):
        """The artefact, read by the libraries that read its kind, on a base of its own."""
        artefact = self.folder / "artefact"
        if not artefact.is_dir():
            artefact.mkdir()
            self.method.save(artefact)
        base = copy.deepcopy(self.base)
        if self.method.artefact == "model":
            return AutoModelForCausalLM.from_pretrained(artefact, dtype=torch.float32)
        if prefix.is_prefix(artefact):
            return prefix.load(base, artefact)
        return peft.PeftModel.from_pretrained(base, str(artefact))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def trained(request, tmp_path_factory):
    return Trained(*request.param, tmp_path_factory.mktemp("-".join(request.param)))


def test_starts_at_the_base(trained):
    difference = (trained.before - logits(trained.base)).abs().max()
    assert difference > 1e-3 if trained.name in ELSEWHERE else difference == 0


def test_learns_and_only_what_is_trained_changes(trained):
    assert trained.losses[-1] < trained.losses[0]
    now = dict(trained.network.named_parameters())
    changed = {name for name, before in trained.state.items() if not torch.equal(before, now[name])}
    assert changed
    assert changed <= {name.removeprefix("network.") for name in trained.method.trained()}
    assert (logits(trained.network) - trained.before).abs().max() > 1e-3


def test_frozen_weights_are_those_of_the_base(trained):
    base = dict(trained.base.named_parameters())
    named = {base_name(name, base): parameter for name, parameter in trained.network.named_parameters()}
    frozen = {name: parameter for name, parameter in named.items() if not parameter.requires_grad and name in base}
    assert all(torch.equal(base[name], parameter) for name, parameter in frozen.items())
    own = {base_name(name.removeprefix("network."), base) for name in trained.method.trained()}
    if trained.method.artefact == "adapter":
        assert own.isdisjoint(base)
        assert len(frozen) == len(base)
    else:
        assert own | frozen.keys() == base.keys()


def test_what_is_trained_has_32_bits(trained):
    assert {parameter.dtype for parameter in trained.method.trained().values()} == {torch.float32}


def test_what_is_saved_gives_the_same_logits(trained):
    assert (logits(trained.saved()) - logits(trained.network)).abs().max() < 1e-5


def test_without_adaptation_it_is_the_base(trained):
    with trained.method.without_adaptation():
        assert torch.equal(logits(trained.network), logits(trained.base))
    assert (logits(trained.network) - logits(trained.base)).abs().max() > 1e-3


def answers(network, prompts):
    return [answer.ids for answer in generate(network, prompts, stop_ids=[1], pad_id=0, max_new_tokens=6)]


def spelt(ids):
    return "".join(f"<{token}>" for token in ids)


def test_generates_from_what_is_saved_as_from_what_is_live(trained):
    prompts = [row.tolist() for row in ids(2, 10, seed=4)]
    prompts = [prompts[0][2:6] + prompts[0][4:6], prompts[1][:6]]
    live = answers(trained.network, prompts)
    assert live == answers(trained.saved(), prompts)
    # a row's answer depends neither on the padding beside a longer one nor on how it is generated
    assert live == [answers(trained.network, [prompt])[0] for prompt in prompts]
    pieces = stream(trained.network, prompts[0], tokenizer_decode=spelt, stop_ids=[1], max_new_tokens=6)
    assert "".join(pieces) == spelt(live[0])


@pytest.mark.parametrize(("name", "family"), CASES, ids=lambda value: value)
def test_checkpointed_gradients_are_the_same(name, family):
    if node_of(name).quantize is not None:
        pytest.skip("tried on a whole run")
    plain, checkpointed = network_of(family).train(), network_of(family).train()
    checkpointed.activation_checkpointing_enable({"use_reentrant": False})
    gradients = []
    for network in (plain, checkpointed):
        method = made(name, network)
        torch.manual_seed(5)
        SFT().loss(method.network, batch()).total.backward()
        gradients.append({n: p.grad for n, p in method.trained().items() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][n], gradients[1][n], atol=1e-6) for n in gradients[0])


@pytest.mark.parametrize(("name", "family"), CASES, ids=lambda value: value)
def test_a_base_of_16_bits_stays_so(name, family):
    if node_of(name).quantize is not None:
        pytest.skip("tried on a whole run")
    method = made(name, network_of(family, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        losses = learn(method, steps=2)
    assert all(loss < 1e3 for loss in losses)
    assert {p.dtype for p in method.trained().values()} == {torch.float32}
    frozen = {p.dtype for p in method.parameters() if not p.requires_grad}
    assert frozen <= {torch.bfloat16, torch.float32 if family in MIXTURES else torch.bfloat16}
    assert all(p.isfinite().all() for p in method.trained().values())


@pytest.mark.parametrize(("name", "family"), sorted(REFUSED))
def test_what_cannot_work_is_refused_by_name(name, family):
    method = made(name)
    with pytest.raises(UserError, match=r"use (method=ptuning_v2|quantize=null)"):
        method.examine(skeleton_of(family))


@pytest.mark.parametrize(("run", "drawn"), [("cuda:0", "cpu"), ("cpu", "cpu"), ("meta", "meta")])
def test_what_is_new_begins_on_the_cpu_unless_it_is_only_planned(run, drawn):
    """Lightning makes the run's device the default one, and a GPU's random numbers are others."""
    with torch.device(run), methods_base._drawn_on_cpu():
        assert torch.get_default_device().type == drawn
