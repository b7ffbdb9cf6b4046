"""Atomic writes, fingerprints, locks."""

import multiprocessing

import pytest
import torch
from safetensors.torch import save_file

from glm_lightning.files import atomic_folder, digest, fingerprint, lock, recover, sampled_fingerprint, write_text


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "made"
    with atomic_folder(target) as part:
        (part / "a").write_text("new", encoding="utf-8")
        assert not target.exists()
    with pytest.raises(KeyError), atomic_folder(target) as part:
        {}[(part / "a").write_text("half", encoding="utf-8")]
    assert (target / "a").read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_files_of_a_folder_are_read_by_whom_the_folder_is(tmp_path):
    with atomic_folder(tmp_path / "made") as part:
        save_file({"a": torch.zeros(1)}, part / "model.safetensors")
    folder, file = (path.stat().st_mode & 0o777 for path in (tmp_path / "made", tmp_path / "made/model.safetensors"))
    assert file == folder & 0o666


def test_a_folder_set_aside_by_a_crash_is_put_back(tmp_path):
    target = tmp_path / "last"
    aside = tmp_path / ".last.old"
    aside.mkdir()
    recover(target)
    assert target.is_dir()
    aside.mkdir()
    recover(target)
    assert aside.is_dir()


def test_a_text_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "文件.txt"
    write_text(path, "一\r\n二")
    assert path.read_bytes().decode("utf-8") == "一\r\n二"
    write_text(path, "三")
    assert [file.name for file in path.parent.iterdir()] == ["文件.txt"]


def test_digest_depends_on_every_part_and_not_on_key_order():
    assert digest({"a": 1, "b": "二"}) == digest({"b": "二", "a": 1})
    assert len({digest(1), digest("1"), digest(1, 2), digest([1, 2])}) == 4


def test_sampled_fingerprint_sees_size_ends_and_small_files(tmp_path):
    path = tmp_path / "weights"
    seen = set()
    for content in (b"", b"a", b"ab", b"a" * 70_000, b"a" * 69_999 + b"b"):
        path.write_bytes(content)
        seen.add(sampled_fingerprint(path))
    assert len(seen) == 5
    assert fingerprint(path) not in seen


def hold(path, entered, leave):
    with lock(path):
        entered.set()
        leave.wait(20)


def test_a_lock_excludes_another_process_and_ends_with_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    entered, leave = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "lock", entered, leave))
    process.start()
    assert entered.wait(20)
    with pytest.raises(TimeoutError, match="another process"), lock(tmp_path / "lock", timeout=0.2):
        pass
    process.kill()
    process.join()
    with lock(tmp_path / "lock", timeout=5):
        pass
