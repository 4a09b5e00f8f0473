"""Where pretraining text comes from: built-in captions, files, shards, mixtures; and what is held out of each."""

from __future__ import annotations

import io
import tarfile

import pytest
import torch

from contextual_inversion.core.prompt_sets import synthetic_captions
from contextual_inversion.core.prompts.captions import (
    ListedCaptions,
    MixedCaptions,
    ShardCaptions,
    SplitCaptions,
    captions_from_file,
    is_held_out,
)
from contextual_inversion.core.world.sources import WorldCaptions


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shard(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["concept_world", "pets", "objects"])
def test_built_in_captions_are_plain_sentences_that_repeat(name):
    source = synthetic_captions(name)
    texts = source.draw(200, generator())
    assert texts == source.draw(200, generator())
    assert len(set(texts)) > 150
    assert not any("{" in text or "[" in text or "  " in text for text in texts)
    assert source.state() == synthetic_captions(name).state()


def test_shards_give_what_is_in_them_wherever_it_lies(tmp_path):
    long_name = "x" * 150 + ".txt"  # a header of its own precedes such a member
    first = shard(
        tmp_path / "0.tar", {"0.jpg": b"\xff\xd8" * 700, "0.txt": b"a dog", "1.txt": "ein H\u00fcndchen\n".encode()}
    )
    second = shard(tmp_path / "1.tar", {"2.json": b"{}", long_name: b"a  cat\nasleep"})
    empty = shard(tmp_path / "2.tar", {"3.jpg": b"\xff"})
    source = ShardCaptions([first, empty, second])
    assert [source[index] for index in range(len(source))] == ["a dog", "ein H\u00fcndchen", "a cat asleep"]
    assert set(source.draw(60, generator())) == {"a dog", "ein H\u00fcndchen", "a cat asleep"}
    assert source.state() != ShardCaptions([first]).state()


def test_shards_of_other_words_in_the_same_places_are_other_shards(tmp_path):
    one, other = (shard(tmp_path / name, {"0.txt": text}) for name, text in (("0.tar", b"a cat"), ("1.tar", b"a dog")))
    assert ShardCaptions([one]).state() != ShardCaptions([other]).state()
    assert ShardCaptions([one]).state() == ShardCaptions([shard(tmp_path / "2.tar", {"0.txt": b"a cat"})]).state()


def test_hidden_files_and_empty_captions_are_no_captions(tmp_path):
    members = {
        "._0.txt": b"\x00\x05\x16\x07\xff",
        "0.txt": b"\xef\xbb\xbfa cat\r\n",
        "a/._1.txt": b"\xff",
        "a/1.txt": b" \n",
    }
    source = ShardCaptions([shard(tmp_path / "0.tar", members)])
    assert [source[n] for n in range(len(source))] == ["a cat"]


def test_shards_that_cannot_be_read_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"no \.txt member"):
        ShardCaptions([shard(tmp_path / "0.tar", {"0.jpg": b"\xff"})])
    with pytest.raises(ValueError, match="uncompressed tar"):
        ShardCaptions([shard(tmp_path / "1.tar.gz", {"0.txt": b"a"}, mode="w:gz")])
    with pytest.raises(ValueError, match="not UTF-8"):
        ShardCaptions([shard(tmp_path / "2.tar", {"0.txt": b"a cat", "1.txt": b"\xff\xfe\xfa"})])


def test_a_caption_file_is_its_lines(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes("\ufeffa dog # number 1\r\n\n  two   cats \n".encode())
    assert captions_from_file(path).captions == ("a dog # number 1", "two cats")
    path.write_bytes(b"fine\nfine\n\xff\n")
    with pytest.raises(ValueError, match="line 3"):
        captions_from_file(path)
    path.write_bytes(b"\n\n")
    with pytest.raises(ValueError, match="holds no caption"):
        captions_from_file(path)


def test_a_mixture_has_the_share_that_was_asked_for():
    real = ListedCaptions(("real",))
    for share in (0.0, 0.7, 1.0):
        texts = MixedCaptions(real, WorldCaptions(), share).draw(1000, generator())
        found = texts.count("real") / 1000
        assert abs(found - share) <= 4 * (share * (1 - share) / 1000) ** 0.5


def test_the_split_is_by_sentence_and_has_its_share():
    held_out = [is_held_out(f"caption number {n}") for n in range(20_000)]
    assert abs(sum(held_out) / 20_000 - 0.05) < 4 * (0.05 * 0.95 / 20_000) ** 0.5
    assert is_held_out(" A  Dog") == is_held_out("a dog")


def test_a_source_with_nothing_to_hold_out_says_so():
    text = next(f"dog {n}" for n in range(100) if not is_held_out(f"dog {n}"))
    with pytest.raises(ValueError, match="too few different captions: none held out"):
        SplitCaptions(ListedCaptions((text,)), held_out=True).draw(1, generator())


def test_files_that_differ_have_states_that_differ():
    assert ListedCaptions(("a", "b")).state() != ListedCaptions(("a", "c")).state()
