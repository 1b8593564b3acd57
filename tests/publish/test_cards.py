"""Cards say what the run says, in a form that the hub reads, and nothing that is nobody's business."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from hala_hpc.config.errors import HalaError
from hala_hpc.models import location
from hala_hpc.publish import cards, content, publication
from hala_hpc.publish.publication import Publication, PublishOptions
from tests.publish import runs

LABELS = {"base": (0.4, 0.02), "sft": (0.5, 0.03)}


def prepared(run: Path, item: str | None = None, **options: object) -> Publication:
    return publication.prepare(run, content.model(run, item), PublishOptions(**options))  # type: ignore[arg-type]


def front(card: str) -> dict[str, object]:
    head, _ = cards.split(card)
    assert head == yaml.safe_load(card.split("---\n")[1])
    return head


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    data = {
        "english": {"hub": "Org/english", "licence": "mit"},
        "mine": {"path": [str(tmp_path / "me" / "mine.jsonl")], "licence": "cc-by-sa-4.0"},
    }
    read = [{"original": str(tmp_path / "me" / "mine.jsonl"), "rows": 1234, "dataset": "mine"}]
    return runs.trained(tmp_path / "sft", {"name": "Org/base-1b", "licence": "Apache 2.0"}, data, read)


def test_a_models_card_is_its_own_with_licence_sources_and_relation(tuned: Path) -> None:
    made = prepared(tuned, about="Made with *care*.")
    told, text = cards.split(made.card)
    own, own_text = cards.split((tuned / "shards/000/000000/README.md").read_text())
    assert told.items() >= own.items()
    assert told["license"] == "cc-by-sa-4.0" and made.decision.carried
    assert (told["base_model"], told["base_model_relation"]) == ("Org/base-1b", "finetune")
    assert told["datasets"] == ["Org/english"]
    head, mark, rest = own_text.partition("\n## ")
    assert text.startswith(head.rstrip()) and text.rstrip().endswith((mark + rest).rstrip())
    assert "Made with *care*." in text and "## What it cost" not in text  # a training's card has its hours
    assert "| [Org/english](https://huggingface.co/datasets/Org/english) | data |  | mit | the recipe |  |" in text
    assert "| `mine.jsonl` | data | 1,234 | cc-by-sa-4.0 | the recipe |  |" in text


def test_a_merges_card_has_hours_and_gpu_hours_of_its_workers(tmp_path: Path, tuned: Path) -> None:
    given = [{"name": "Org/base-1b", "licence": "apache-2.0"}, {"name": str(tuned)}]
    run = runs.merged(tmp_path / "merge", given, ("t0.25", "t0.50"))
    text = prepared(run, "t0.50").card
    assert "| workers | 2 |" in text and "| hours of all workers | 1 |" in text
    assert "| GPU-hours | 8 |" in text  # 2 half hours, 2 nodes of 4
    assert "| hours from first to last | 0.5 |" in text
    assert front(text)["tags"] == ["merge", "hala-hpc"]
    with pytest.raises(HalaError, match=r"made 2 models.*t0.25, t0.50"):
        content.model(run)
    with pytest.raises(HalaError, match="no model 't1'"):
        content.model(run, "t1")
    shutil.rmtree(run / "shards" / "000" / "000000")
    assert prepared(run, "t0.50").card == text  # it needs no other
    with pytest.raises(HalaError, match=r"t0.25 is not there"):
        content.model(run, "t0.25")


def test_a_licence_that_the_hub_does_not_know_goes_with_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "home" / "hub"
    runs.card_in_cache(cache, "model", "Org/base-1b", "other", license_name="lfm1.0")
    next(cache.rglob("README.md")).with_name("LICENSE").write_text("LFM Open License")
    tuned = runs.trained(tmp_path / "sft", {"name": "Org/base-1b"}, {"a": {"hub": "a/b", "licence": "mit"}}, [])
    runs.change(tuned, site={"cache": str(tmp_path / "home")})
    made = prepared(tuned)
    told = front(made.card)
    assert (told["license"], told["license_name"], told["license_link"]) == ("other", "lfm1.0", "LICENSE")
    assert {entry.name for entry in made.entries} >= {"LICENSE", "README.md", "config.json", "hala.json"}
    assert made.warnings == ("the hub has no licence 'lfm1.0'",)
    assert "LICENSE" not in {entry.name for entry in prepared(tuned, licence="mit").entries}


def test_scores_are_those_of_exactly_these_weights(tmp_path: Path, tuned: Path) -> None:
    """The label does not count: an evaluation of older weights under the same name is refused."""
    scores = {"base": {"mmlu": (0.4, 0.02), "exams": (0.25, 0.03)}, "sft": {"mmlu": (0.5, 0.02), "exams": (0.3, 0.06)}}
    weights = {"base": "b" * 32, "sft": runs.digest(tuned)}
    run = runs.evaluated(tmp_path / "evaluate", scores, weights)
    text = prepared(tuned, scores=(run,)).card
    assert "| benchmark | shots | questions | **this model** | base |" in text
    # a benchmark's error: of the mean of two tasks with 0.02 each, 0.02 / sqrt(2)
    assert "| mmlu | 0 | 100 | 50.00 ± 1.41 | 40.00 ± 1.41 |" in text
    assert "| exams | 0 | 100 | 30.00 ± 4.24 | 25.00 ± 2.12 |" in text
    assert "| average of benchmarks |  |  | 40.00 | 32.50 |" in text
    results = ModelCard(text).data.eval_results  # as the hub's own library reads them
    assert [(one.dataset_name, one.metric_type, one.metric_value) for one in results or []] == [
        ("mmlu", "acc_norm", 0.5), ("exams", "acc_norm", 0.3),
    ]  # fmt: skip

    before = scores | {"sft": {"mmlu": (0.1, 0.02), "exams": (0.1, 0.06)}}
    other = runs.evaluated(tmp_path / "other", before, weights | {"sft": "e" * 32})
    assert prepared(tuned, scores=(run, other)).card == text  # older weights of the same label have no say
    with pytest.raises(HalaError, match=r"no result is of these weights.*sft \(eeeeeeee\)"):
        prepared(tuned, scores=(other,))
    with pytest.raises(HalaError, match="run twice"):
        prepared(tuned, scores=(run, run))


def test_tries_on_a_few_questions_are_told_as_such(tmp_path: Path, tuned: Path) -> None:
    scores = {"sft": {"mmlu": (0.5, 0.02), "exams": (0.3, 0.06)}}
    weights = {"sft": runs.digest(tuned)}
    text = prepared(tuned, scores=(runs.evaluated(tmp_path / "some", scores, weights, {"mmlu": 9}),)).card
    assert "- mmlu: at most 9 questions of each task" in text
    assert [one.dataset_name for one in ModelCard(text).data.eval_results or []] == ["exams"]
    few = runs.evaluated(tmp_path / "few", scores, weights, {"mmlu": 9, "exams": 9})
    assert "model-index" not in front(prepared(tuned, scores=(few,)).card)
    shutil.rmtree(few / "shards" / "000" / "000001")
    with pytest.raises(HalaError, match=r"--scores few: 1 shard not finished"):
        prepared(tuned, scores=(few,))


def test_a_card_tells_that_the_model_was_chosen_by_such_scores(tmp_path: Path, tuned: Path) -> None:
    """Scores of a model that was picked by them are too good: whoever reads them must know."""
    scores = {"base": {"mmlu": (0.4, 0.02)}, "sft": {"mmlu": (0.5, 0.02)}}
    run = runs.evaluated(tmp_path / "evaluate", scores, {"base": "b" * 32, "sft": runs.digest(tuned)})
    candidates = [
        {"model": "sft", "weights": runs.digest(tuned), "held_out": {"value": 0.4875, "error": 0.031}},
        {"model": "base", "weights": "b" * 32, "held_out": None},
    ]
    told = {
        "weights": runs.digest(tuned), "rule": {"name": "average", "says": "the highest average"},
        "split": {"share": 0.5, "seed": 0}, "candidates": candidates,
    }  # fmt: skip
    (run / "best.json").write_text(json.dumps(told))
    text = prepared(tuned, scores=(run,)).card
    assert (
        "Chosen among sft, base by 50% of the questions, drawn by a hash of their names: the highest average." in text
    )
    assert "On the other questions its average is 48.75 ± 3.10." in text
    (run / "best.json").write_text(json.dumps(told | {"weights": "b" * 32}))
    assert "Chosen among" not in prepared(tuned, scores=(run,)).card


def test_text_of_others_cannot_break_the_card(tmp_path: Path) -> None:
    odd = "x|<script>\nalert(1)"
    scores = {"sft": {odd: (0.5, 0.0)}}
    tuned = runs.trained(
        tmp_path / "sft", {"name": "Org/base", "licence": "mit"}, {"a": {"hub": "a/b", "licence": "mit"}}, []
    )
    run = runs.evaluated(tmp_path / "evaluate", scores, {"sft": runs.digest(tuned)})
    text = cards.split(prepared(tuned, scores=(run,)).card)[1]
    assert "<script>" not in text and "| x/&lt;script> alert(1) | 0 |" in text


def test_keys_are_refused_and_folders_are_told(tuned: Path) -> None:
    template = tuned / "shards/000/000000/chat_template.jinja"
    template.write_text(f"{{# {tuned.parent}/notes #}}")
    assert prepared(tuned).warnings == (f"chat_template.jinja names the folder {tuned.parent}",)
    template.write_text("{# hf_" + "a1B2" * 9 + " #}")
    with pytest.raises(HalaError, match=r"chat_template.jinja: holds what looks like a secret key"):
        prepared(tuned)


def test_what_llama_asks_for(tmp_path: Path) -> None:
    base = {"name": "meta/base", "licence": "llama3.1"}
    made = prepared(runs.trained(tmp_path / "sft", base, {"a": {"hub": "a/b", "licence": "mit"}}, []))
    assert made.decision.licence == "llama3.1" and "\nBuilt with Llama.\n" in made.card
    assert made.warnings == ("Llama's licence wants the model's name to begin with Llama",)


def test_a_licence_with_a_slip_in_its_name_is_told(tuned: Path) -> None:
    assert prepared(tuned, licence="apache-20").warnings == (
        "the hub has no licence 'apache-20' (did you mean 'apache-2.0'?)",
        "the text of apache-20 does not go along: nobody has a LICENSE file of it",
    )


def test_a_path_in_a_recipe_is_told_by_its_last_name(tuned: Path) -> None:
    made = prepared(tuned)
    card = made.card
    assert made.warnings == () and str(tuned.parent) not in card and "mine.jsonl" in card


@pytest.mark.parametrize(
    ("text", "metadata", "body"),
    [
        ("---\na: 1\n---\nx\n", {"a": 1}, "x\n"),
        ("---\r\na: 1\r\n---\r\nx", {"a": 1}, "x\n"),
        ("no metadata\n---\n", {}, "no metadata\n---\n"),
        ("---\na: 1\n", {}, "---\na: 1\n"),
        ("", {}, ""),
    ],
)
def test_cards_are_taken_apart(text: str, metadata: dict[str, object], body: str) -> None:
    assert cards.split(text) == (metadata, body)


@pytest.mark.parametrize(
    ("front", "told"),
    [
        ("tags: [a", "not YAML: line "),
        ("- a", "not a YAML mapping"),
        ("language: Arabic", "language: the hub does not take 'Arabic' (for example ar"),
        ("language: no", "language: the hub does not take False"),
        ("datasets: [my corpus v2]", "datasets: the hub does not take 'my corpus v2'"),
        ("base_model: /models/x", "base_model: the hub does not take"),
        (
            "datasets: [{name: my corpus}]",
            "datasets: the hub does not take {'name': 'my corpus'} (for example org/name",
        ),
        ("tags: [{a: b}]", "tags: the hub does not take {'a': 'b'}"),
        ("tags: yes", "tags: the hub does not take True (for example arabic"),
    ],
)
def test_a_card_that_the_hub_would_refuse_is_refused_before_anything_is_sent(
    tuned: Path, front: str, told: str
) -> None:
    (folder,) = location.locate(str(tuned)).values()
    (folder / "README.md").write_text(f"---\n{front}\n---\n# x\n")
    with pytest.raises(HalaError) as refused:
        prepared(tuned)
    assert told in str(refused.value)
