"""The command `prompts`: every line checked, duplicates dropped and counted, also with a language model."""

from __future__ import annotations

import json

import pytest

from contextual_inversion.cli import main as cli
from contextual_inversion.core.prompt_sets import rich_set
from contextual_inversion.core.prompts.parse import read_prompt_file
from contextual_inversion.core.prompts.sets import built_in_set
from contextual_inversion.core.prompts.written import WrittenPrompts, lines_of, request


def answers(*texts):
    """A language model that says these things in turn, then nothing."""
    asked = []

    def say(text, seed):
        asked.append((text, seed))
        return texts[len(asked) - 1] if len(asked) <= len(texts) else ""

    say.asked = asked
    return say


EXAMPLES = ("a {} in the snow", "a red {} on a beach")


def test_usable_lines_count_once_and_the_rest_is_counted_by_reason():
    model = answers(
        "- a {} under a bridge\n2. A  {} under a BRIDGE\n* a {} in the snow\nno place for it\na {} and a {}",
        '"a {} on a shelf."\n{}\n' + "a {} " + "very " * 70 + "far away\na {} in a jar  # my favourite",
    )
    result = WrittenPrompts(model, EXAMPLES, fits=lambda text: len(text) < 60).collect(10)
    assert result.prompts == ("a {} under a bridge", "a {} on a shelf", "a {} in a jar")
    assert result.dropped == {
        "that came twice": 2,
        "without exactly one {}": 2,
        "without a context": 1,
        "too long": 1,
    }
    assert result.figures()["lines"] == 9
    assert "3 usable" in result.summary()


def test_it_stops_at_the_number_asked_for_and_gives_up_on_a_model_that_says_nothing():
    model = answers("a {} in a\na {} in b\na {} in c")
    assert len(WrittenPrompts(model, EXAMPLES).collect(2).prompts) == 2
    assert len(model.asked) == 1
    silent = answers()
    assert WrittenPrompts(silent, EXAMPLES).collect(2).prompts == ()
    assert len(silent.asked) == 6


def test_every_request_shows_other_examples_and_the_same_seed_the_same():
    many = tuple(f"a {{}} in place {number}" for number in range(50))
    first, again, other = answers("", ""), answers("", ""), answers("", "")
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        WrittenPrompts(model, many, "dog", seed=seed).collect(3)
    assert first.asked == again.asked
    assert first.asked[0] != first.asked[1]
    assert first.asked != other.asked
    assert "a dog" in first.asked[0][0]
    assert first.asked[0][0].endswith("\n-")


def test_lines_lose_what_a_list_is_made_of():
    assert lines_of("1) a {} here.\n\n  - 'a {} there'\n\u2022 a  {}\tb # note") == [
        "a {} here",
        "a {} there",
        "a {} b",
    ]
    assert request(EXAMPLES, None).count("{}") == 3


@pytest.fixture
def tiny_llm(tmp_path):
    """A random causal language model with a vocabulary of words, as a folder that transformers reads."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = ["{}", "a", "red", "on", "in", "the", "snow", "beach", "Ċ", "-", "</s>", "?"]
    model = tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Split(" ", "removed"), tokenizers.pre_tokenizers.Split("\n", "isolated")]
    )
    tokenizer.normalizer = tokenizers.normalizers.Replace("\n", " Ċ ")
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Fuse(), tokenizers.decoders.Replace("Ċ", "\n")]
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="?")
    import torch

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(words), n_positions=1024, n_embd=16, n_layer=1, n_head=2)
    config.eos_token_id = config.bos_token_id = words.index("</s>")
    folder = tmp_path / "llm"
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def test_a_local_language_model_writes_a_file_that_training_reads(tiny_llm, tmp_path):
    pytest.importorskip("tyro")
    out, figures = tmp_path / "mine.txt", tmp_path / "figures.json"
    options = ["--llm", str(tiny_llm), "--count", "4", "--examples", "concept_world", "--device", "cpu"]
    code = cli.main(["prompts", *options, "--out", str(out), "--json", str(figures)])
    assert code == 0
    prompts = read_prompt_file(out)
    facts = json.loads(figures.read_text())
    assert len(prompts) == facts["prompts"] == 4
    assert facts["lines"] == 4 + sum(facts["dropped"].values())
    assert facts["dropped"]["without exactly one {}"] > 0, "a random model writes much that is no prompt"
    again = tmp_path / "again.txt"
    assert cli.main(["prompts", *options, "--out", str(again)]) == 0
    assert again.read_text() == out.read_text()


def test_without_a_language_model_it_writes_a_built_in_set_and_replaces_nothing(tmp_path, capsys):
    pytest.importorskip("tyro")
    out = tmp_path / "set.txt"
    assert cli.main(["prompts", "--out", str(out), "--examples", "animate"]) == 0
    assert read_prompt_file(out) == built_in_set("animate").prompts
    assert cli.main(["prompts", "--out", str(out)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main(["prompts", "--out", str(out), "--llm", str(tmp_path / "nothing"), "--overwrite"]) == 1
    assert read_prompt_file(out) == built_in_set("animate").prompts


def test_of_a_rich_set_it_writes_as_many_as_asked_for(tmp_path, capsys):
    """400 stood for all: the rest was left out without a word."""
    pytest.importorskip("tyro")
    out = tmp_path / "set.txt"
    assert cli.main(["prompts", "--out", str(out), "--examples", "rich pets", "--count", "1500"]) == 0
    prompts = read_prompt_file(out)
    assert len(set(prompts)) == 1500
    assert prompts[: len(rich_set("pets"))] == rich_set("pets").prompts
    capsys.readouterr()
    options = ["--examples", "animate", "--count", "1500", "--overwrite"]
    assert cli.main(["prompts", "--out", str(out), *options]) == 0
    assert "no more than 100" in capsys.readouterr().out
    assert cli.main(["prompts", "--out", str(out), *options, "--class-word", "dog"]) == 1
    assert "--llm" in capsys.readouterr().err
