"""Merging, as far as it needs no torch: which models fit, the grid's cells, what a merged model has besides."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.merge import inputs as merge_inputs
from hala_hpc.tasks.merge import merging as merge_folder
from hala_hpc.tasks.merge import methods
from hala_hpc.tasks.merge.inputs import Vocabulary
from tests.tasks.merge.merge_pairs import Numbers, configure, store

LAYER = "model.layers.{}.mlp.up_proj.weight"
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_attention_heads": 4,
    "vocab_size": 12,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def tokenizer(words: str = "abcdefghijkl", splits: bool = True) -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    if splits:
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def tensors(seed: int = 0) -> dict[str, Numbers]:
    draw = np.random.default_rng(seed)
    made = {LAYER.format(layer): draw.normal(size=(8, 4)) for layer in range(3)}
    return made | {"model.embed_tokens.weight": draw.normal(size=(12, 4)), "lm_head.weight": draw.normal(size=(12, 4))}


def model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A model's folder without torch: two files of weights, a configuration, a tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    (folder / "tokenizer_config.json").write_text("{}")
    tokenizer().save(str(folder / "tokenizer.json"))
    store(folder, tensors(seed))
    return folder


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return model(tmp_path / "one"), model(tmp_path / "two", 1)


def compare(one: Path, two: Path) -> None:
    """What a plan does before anything else."""
    merge_inputs.refuse_unlike(merge_inputs.read("base", one), merge_inputs.read("tuned", two))


def test_models_of_a_kind_fit(two: tuple[Path, Path]) -> None:
    compare(*two)


def missing_file(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def cut_short(folder: Path) -> None:
    file = folder / "model-00001-of-00002.safetensors"
    os.truncate(file, file.stat().st_size - 5)


def eight_bits(folder: Path) -> None:
    file = folder / "model-00001-of-00002.safetensors"
    header = {"w": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}
    told = json.dumps(header).encode()
    file.write_bytes(len(told).to_bytes(8, "little") + told + b"1234")
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    kept = {name: place for name, place in places.items() if place != file.name}
    index.write_text(json.dumps({"weight_map": kept | {"w": file.name}}))


def less_than_the_index_says(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": places | {"lost": "model-00001-of-00002.safetensors"}}))


def one_more(folder: Path) -> None:
    store(folder, tensors(1) | {"model.layers.9.extra.weight": np.ones((2, 2))})


def other_shape(folder: Path) -> None:
    store(folder, tensors(1) | {LAYER.format(1): np.ones((8, 5))})


def other_words(folder: Path) -> None:
    tokenizer("abcdefghijkz").save(str(folder / "tokenizer.json"))


def other_cuts(folder: Path) -> None:
    tokenizer(splits=False).save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda two: configure(two, quantization_config={"quant_method": "fp8"}), "is quantized (quantization_config)"),
        (lambda two: configure(two, text_config={"quantization_config": {"a": 1}}), "is quantized"),
        (lambda two: (two / "quantize_config.json").write_text("{}"), "is quantized (quantize_config.json)"),
        (eight_bits, "is quantized (w of type I8)"),
        (missing_file, "1 of 2 weights files are missing"),
        (cut_short, "tuned: "),
        (less_than_the_index_says, "1 tensor of the index are missing from the files, e.g. lost"),
        (lambda two: (two / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda two: configure(two, model_type="gemma2"), "model_type is llama and gemma2"),
        (lambda two: configure(two, num_attention_heads=2), "num_attention_heads is 4 and 2"),
        (lambda two: configure(two, rope_theta=5e5), "rope theta is 10000.0 and 500000.0"),
        (lambda two: configure(two, rope_scaling={"rope_type": "llama3"}), "rope type is default and llama3"),
        (one_more, "1 tensor in tuned only, e.g. model.layers.9.extra.weight"),
        (other_shape, "is 8 x 4 in base, 8 x 5 in tuned"),
        (other_words, "2 of 12 and 12 tokens differ, e.g. 'l' (id 11)"),
        (other_cuts, "cut the same text into different tokens"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_the_reason(
    two: tuple[Path, Path], harm: Callable[[Path], object], told: str
) -> None:
    harm(two[1])
    with pytest.raises(HalaError) as refused:
        compare(*two)
    assert told in str(refused.value)


def test_the_same_rotation_may_be_written_in_two_ways(two: tuple[Path, Path]) -> None:
    """transformers 4 and 5."""
    configure(two[1], rope_theta=None, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})
    compare(*two)


def test_a_tied_head_that_was_stored_once_more_is_no_difference(two: tuple[Path, Path]) -> None:
    one, other = two
    alone = {name: numbers for name, numbers in tensors().items() if name != "lm_head.weight"}
    store(one, alone)
    with pytest.raises(HalaError, match=r"1 tensor in tuned only, e\.g\. lm_head"):
        compare(*two)
    for tied, copy in ((one, other), (other, one)):
        store(tied, alone)
        store(copy, alone | {"lm_head.weight": alone["model.embed_tokens.weight"]})
        compare(*two)
        base, tuned = merge_inputs.read("base", one), merge_inputs.read("tuned", other)
        assert merge_inputs.tensors_to_merge(base, {"tuned": tuned}).keys() == alone.keys()


def test_a_padded_vocabulary_is_shared_up_to_the_last_common_token(two: tuple[Path, Path]) -> None:
    one, other = two
    wide = tensors(1)
    wide |= {name: np.concatenate([wide[name], np.ones((4, 4))]) for name in wide if "embed" in name or "head" in name}
    store(other, wide)
    configure(other, vocab_size=16)
    with pytest.raises(HalaError, match=r"vocab_size is 12 and 16 .*"):
        compare(one, other)
    base, tuned = merge_inputs.read("base", one), merge_inputs.read("tuned", other)
    merge_inputs.refuse_unlike(base, tuned, same_vocabulary=False)
    inputs = {"base": base, "tuned": tuned}
    assert merge_inputs.shared_vocabulary(inputs, "base") == Vocabulary(12, 12)
    assert merge_inputs.shared_vocabulary(inputs, "tuned") == Vocabulary(12, 16)
    tokenizer("abcdefghijklm").save(str(other / "tokenizer.json"))
    assert merge_inputs.shared_vocabulary(inputs, "tuned") == Vocabulary(12, 16)
    tokenizer("abcdefghijXYZ").save(str(other / "tokenizer.json"))
    assert merge_inputs.shared_vocabulary(inputs, "tuned") == Vocabulary(10, 16)
    tokenizer("bacdefghijkl").save(str(other / "tokenizer.json"))
    with pytest.raises(HalaError, match=r"2 tokens have other numbers, e\.g\. 'a' \(0 and 1\)"):
        merge_inputs.shared_vocabulary(inputs, "base")
    tokenizer().save(str(other / "tokenizer.json"))
    assert merge_inputs.shared_vocabulary({"base": base, "again": base}, "base") is None


def names(*arguments: Any) -> list[str]:
    return [cell.name for cell in methods.combinations(*arguments)]


def test_the_grid_is_every_combination_by_name() -> None:
    late = [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"filter": "mlp", "value": 0.7}]
    whole = [*late, {"value": 0.1}]
    found = list(methods.combinations([0.0, 0.125, 1e-5], {"late": late, "whole": whole}, {}, {"eps": 1}))
    assert [cell.name for cell in found] == [
        *("t0.00", "t0.125", "t1e-05", "late-t0.00", "late-t0.125", "late-t1e-05"),
        "whole",
    ]
    assert found[4].parameters == {"eps": 1, "t": [*late, {"value": 0.125}]}
    assert found[4].varied == {"filters": "late", "t": 0.125}
    assert found[6].parameters["t"] == whole and "t" not in found[6].varied
    assert names([], {}, {"density": [0.3, 0.5], "normalize": [True]}, {}) == [
        "density0.30-normalizeTrue", "density0.50-normalizeTrue",
    ]  # fmt: skip
    assert names([], {}, {}, {}) == [""]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (([0.5, 0.5], {}, {}, {}), "two merges would be called 't0.50'"),
        (([], {"a": [{"filter": "mlp", "value": 1}]}, {}, {}), "some tensors may have no t"),
        (([0.5], {"a": [{"filters": "mlp", "value": 1}]}, {}, {}), "is not a filter and a value"),
        (([0.5], {"a": [{"value": ["x"]}]}, {}, {}), "neither a number nor a list of them"),
        (([0.5], {"a": {}}, {}, {}), "a list is wanted"),
        (([0.5], {"../a": [{"value": 1}]}, {}, {}), "cannot be a name"),
        (([], {}, {"density": 0.3}, {}), "task.grid.density: a list of values is wanted, not 0.3"),
        (([], {}, {"x": ["a/b"]}, {}), "cannot be a name"),
    ],
)
def test_a_grid_that_makes_no_sense(arguments: Any, told: str) -> None:
    with pytest.raises(HalaError) as refused:
        names(*arguments)
    assert told in str(refused.value)


def test_each_method_takes_its_number_of_models() -> None:
    def counts(name: str, has_base: bool) -> list[int]:
        good = []
        for others in range(4):
            try:
                methods.check_count(name, methods.METHODS[name], others, has_base)
            except HalaError:
                continue
            good.append(others)
        return good

    assert counts("slerp", True) == [1]
    assert counts("ties", True) == [0, 1, 2, 3]
    assert counts("model_stock", True) == [2, 3]
    assert counts("passthrough", False) == [0]
    assert (counts("nuslerp", True), counts("nuslerp", False)) == ([2], [1])
    with pytest.raises(HalaError, match="did you mean 'slerp'"):
        methods.method_of("slerpp")


def test_a_merged_model_that_is_not_sound_is_seen(two: tuple[Path, Path]) -> None:
    base, merged = two
    (base / "generation_config.json").write_text("{}")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    expected = merge_inputs.read("base", base).tensors
    lost = list(merge_folder.faults(merged, base, expected))
    assert lost == ["generation_config.json was lost", "the chat template was lost"]
    merge_folder.copy_files(base, base, "bfloat16", merged)
    assert list(merge_folder.faults(merged, base, expected)) == []
    spoilt = tensors() | {"more": np.ones(2), LAYER.format(0): np.full((8, 4), np.nan), LAYER.format(1): np.ones(3)}
    del spoilt["lm_head.weight"]
    store(merged, spoilt, dtype="F32")
    found = list(merge_folder.faults(merged, base, expected))
    for told in ("0.mlp.up_proj.weight is not finite", "lm_head.weight is missing", "more should not be stored"):
        assert any(told in fault for fault in found)
    assert any("1.mlp.up_proj.weight is of shape (3,), not (8, 4)" in fault for fault in found)


def test_files_of_base_and_donor_are_kept_and_nobodys_folder(tmp_path: Path) -> None:
    config = {"_name_or_path": "/home/somebody/x", "torch_dtype": "float32", "text_config": {"dtype": "float32"}}
    base, donor = model(tmp_path / "base", **config), model(tmp_path / "donor")
    template = "{{ bos_token }}"
    (donor / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    (donor / "generation_config.json").write_text('{"eos_token_id": [2, 4]}')
    (donor / "training_args.bin").write_text("x")
    (donor / "additional_chat_templates").mkdir()
    (donor / "additional_chat_templates" / "tools.jinja").write_text("t")
    merged = tmp_path / "merged"
    merged.mkdir()
    merge_folder.copy_files(base, donor, "bfloat16", merged)
    written = json.loads((merged / "config.json").read_text())
    assert written["torch_dtype"] == written["text_config"]["dtype"] == "bfloat16"
    assert "dtype" not in written and "somebody" not in json.dumps(written) and written["rope_theta"] == 10000.0
    assert merge_folder.template_of(merged) == template and merge_folder.template_of(base) is None
    assert (merged / "generation_config.json").read_text() == '{"eos_token_id": [2, 4]}'
    assert (merged / "additional_chat_templates" / "tools.jinja").is_file()
    assert not (merged / "training_args.bin").exists()
    shutil.rmtree(donor)
    assert (merged / "tokenizer.json").is_file()
