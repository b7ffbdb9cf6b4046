"""Checkpoints without pickle."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_lightning.runs import SafeCheckpoints
from glm_lightning.runs.checkpoints import set_aside
from glm_lightning.types import UserError

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
states = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(states)
def test_what_is_written_is_read(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("checkpoint") / "last"
    trained = {"network.weight": torch.randn(2, 3)}
    SafeCheckpoints().save_checkpoint({"state_dict": trained, "rest": state}, path)
    read = SafeCheckpoints().load_checkpoint(path)
    assert read["rest"] == state
    torch.testing.assert_close(read["state_dict"], trained, rtol=0, atol=0)


def test_an_optimizer_goes_on_from_its_state(tmp_path):
    def step(parameter, optimizer, times):
        for _ in range(times):
            optimizer.zero_grad()
            (parameter**2).sum().backward()
            optimizer.step()

    parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    step(parameter, optimizer, 2)
    SafeCheckpoints().save_checkpoint(
        {"state_dict": {"p": parameter}, "optimizer_states": [optimizer.state_dict()]}, tmp_path / "last"
    )
    step(parameter, optimizer, 3)

    read = SafeCheckpoints().load_checkpoint(tmp_path / "last")
    other = torch.nn.Parameter(read["state_dict"]["p"])
    resumed = torch.optim.AdamW([other], lr=0.1)
    resumed.load_state_dict(read["optimizer_states"][0])
    step(other, resumed, 3)
    assert torch.equal(parameter, other)


def test_a_tensor_that_several_share_is_written_once(tmp_path):
    """Every parameter of an 8-bit optimizer has the same code book."""
    book, other = torch.arange(4.0), torch.arange(4.0)
    state = {"a": {"book": book}, "b": {"book": book}, "c": [other]}
    SafeCheckpoints().save_checkpoint({"state_dict": {}, **state}, tmp_path / "last")
    read = SafeCheckpoints().load_checkpoint(tmp_path / "last")
    assert read["a"]["book"] is read["b"]["book"]
    assert read["c"][0] is not read["a"]["book"]
    assert torch.equal(read["c"][0], read["a"]["book"])


def test_a_checkpoint_holds_no_pickle(tmp_path):
    SafeCheckpoints().save_checkpoint({"state_dict": {"p": torch.zeros(2)}, "x": torch.zeros(1)}, tmp_path / "last")
    files = sorted(path.name for path in (tmp_path / "last").iterdir())
    assert files == ["optimizer.safetensors", "state.json", "trained.safetensors"]
    json.loads((tmp_path / "last" / "state.json").read_text(encoding="utf-8"))


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path):
    io = SafeCheckpoints()
    io.save_checkpoint({"state_dict": {"p": torch.zeros(2)}, "step": 1}, tmp_path / "last")
    with pytest.raises(AssertionError, match="cannot be stored"):
        io.save_checkpoint({"state_dict": {"p": torch.ones(2)}, "step": object()}, tmp_path / "last")
    assert io.load_checkpoint(tmp_path / "last")["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_torn_checkpoint_is_named(tmp_path, name, damage):
    path = tmp_path / "last"
    SafeCheckpoints().save_checkpoint({"state_dict": {"p": torch.zeros(20)}, "x": torch.zeros(9)}, path)
    file = path / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match="last: not a whole checkpoint"):
        SafeCheckpoints().load_checkpoint(path)


@pytest.fixture
def small_files():
    """No file may grow beyond 4 KiB: to a writer that is a disk without room."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_the_old_checkpoint_stays(tmp_path, small_files):
    io = SafeCheckpoints()
    io.save_checkpoint({"state_dict": {"p": torch.zeros(2)}, "step": 1}, tmp_path / "last")
    with pytest.raises(UserError, match=r"last: cannot be written .* takes 0\.1 MiB, and the disk of .* MiB free"):
        io.save_checkpoint({"state_dict": {"p": torch.ones(25_000)}, "step": 2}, tmp_path / "last")
    assert io.load_checkpoint(tmp_path / "last")["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_checkpoint_that_is_kept_takes_no_room_of_its_own(tmp_path):
    io = SafeCheckpoints()
    io.save_checkpoint({"state_dict": {"p": torch.zeros(2)}, "step": 1}, tmp_path / "last")
    set_aside(tmp_path / "last", tmp_path / "previous")
    files = [tmp_path / name / "trained.safetensors" for name in ("last", "previous")]
    assert files[0].stat().st_ino == files[1].stat().st_ino
    io.save_checkpoint({"state_dict": {"p": torch.ones(2)}, "step": 2}, tmp_path / "last")
    assert io.load_checkpoint(tmp_path / "previous")["step"] == 1
    assert torch.equal(io.load_checkpoint(tmp_path / "previous")["state_dict"]["p"], torch.zeros(2))
