"""lm-evaluation-harness over our engine: the same answers as over its own transformers model, on real vLLM."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.tasks.evaluate import benchmarks
from tests.conftest import ROOT, SMALL_VLLM, TinyModel
from tests.numbers import LOG_PROBABILITY, best_of, same_log_probabilities

pytestmark = pytest.mark.timeout(900)  # engines, and transformers beside them, on a machine that does other things too
SCRIPT = Path(__file__).with_name("lm_eval_script.py")
TASKS = ROOT / "jobs" / "tasks"
TEXTS = """
task: texts
dataset_path: csv
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{[choice0, choice1, choice2, choice3]}}"
doc_to_target: answer
metric_list:
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
WRITTEN = """
task: written
dataset_path: csv
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:"], do_sample: false, max_gen_toks: 24}
filter_list:
  - name: number
    filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]
  - name: whole
    filter: [{function: take_first}]
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
INPUTS = """
task: inputs
dataset_path: csv
test_split: test
output_type: multiple_choice
doc_to_text: "{{answer}}"
doc_to_choice: "{{[choice0, choice1, choice2, choice3]}}"
doc_to_target: "is what I would say."
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
MASS = """
task: mass
dataset_path: csv
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
process_results: !function mass.process_results
metric_list:
  - {metric: mass, aggregation: mean, higher_is_better: true}
"""
MASS_CODE = """
import math


def process_results(doc, results):
    shares = [math.exp(likely) for likely, _ in results]
    return {"mass": shares[doc["answer"]] / sum(shares)}
"""
WEIGHTED = """
task: weighted
dataset_path: csv
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - {metric: word_perplexity}
"""
PAIRS = (
    ("Etxea handia da.", "Etxe handia da."),
    ("Bihar etorriko naiz.", "Bihar etorri naiz."),
    ("Liburua irakurri dut.", "Liburua irakurri naiz."),
    ("Gaur nire herriari buruz idatziko dizut.", "Gaur nire herriaren buruz idatziko dizut."),
)
CATEGORIES = [
    "Adin",
    "Arraza_etnizitate",
    "Ezgaitasun_egoera",
    "Genero_identitate",
    "Itxura_fisikoa",
    "MSE",
    "Nazionalitate",
    "Orientazio_sexual",
]
ARCHITECTURES = ("llama", "gemma2")


@pytest.fixture(scope="module")
def told(
    serve_python: Path, tiny_model: TinyModel, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What our harness and lm-eval's own model said, by architecture: one process for all of it."""
    folder = tmp_path_factory.mktemp("lm_eval")
    fill(folder, data)
    models = [tiny_model(architecture) for architecture in ARCHITECTURES]
    out = folder / "told.json"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    small = SMALL_VLLM | {"TQDM_DISABLE": "1"}
    command = [str(each) for each in (serve_python, SCRIPT, folder, out, *models)]
    done = subprocess.run(command, env=os.environ | offline | small, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def fill(folder: Path, data: Path) -> None:
    """Task files of ours and of this test, and data for them: English MMLU's short questions, and some in Basque."""
    for path in (*TASKS.glob("local/*"), *TASKS.glob("latxa/*")):
        shutil.copy(path, folder)
    short = (folder / "mgsm_native_cot_eu.yaml").read_text().replace("do_sample:", "max_gen_toks: 16\n  do_sample:")
    (folder / "mgsm_native_cot_eu.yaml").write_text(short)
    for name, text in (
        ("texts", TEXTS),
        ("written", WRITTEN),
        ("weighted", WEIGHTED),
        ("inputs", INPUTS),
        ("mass", MASS),
    ):
        (folder / f"{name}.yaml").write_text(text)
    (folder / "mass.py").write_text(MASS_CODE)
    for name in ("mmlu/test", "pairs", "bbq", "empty"):
        (folder / name).mkdir(parents=True)
    for subject in ("global_facts", "miscellaneous"):
        lines = (data / "arabic_bench" / "mmlu_english" / "test" / f"{subject}_test.csv").read_text().splitlines()
        (folder / "mmlu" / "test" / f"{subject}.csv").write_text("\n".join(lines[:40]))
    rows = [{"sentence_good": good, "sentence_bad": bad, "type": "E1", "level": "A"} for good, bad in PAIRS]
    (folder / "pairs" / "bl2mp.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write(folder / "bertaqa" / "eu" / "test.jsonl", [trivia(number) for number in range(24)])
    write(folder / "mmlu_eu" / "eu" / "test.jsonl", [exam(number) for number in range(6)])
    write(folder / "mgsm" / "train.jsonl", [sum_of(number) for number in range(2)])
    write(folder / "mgsm" / "test.jsonl", [sum_of(number) | {"answer": None} for number in range(2, 4)])
    for category in CATEGORIES:
        for condition in ("ambig", "disambig"):
            lines = [json.dumps(bias_question(category, condition, number)) for number in range(3)]
            (folder / "bbq" / f"{category}_{condition}.jsonl").write_text("\n".join(lines))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))


def trivia(number: int) -> dict[str, Any]:
    """One of BertaQA's, as its dataset has them."""
    group = ("Euskal gaiak", "Gai orokorrak")[number % 2]
    candidates = [f"{number}.{choice}" for choice in range(3)]
    return {"question": f"{group} {number}?", "candidates": candidates, "answer": number % 3, "group": group}


def exam(number: int) -> dict[str, Any]:
    return {"question": f"Zenbat da {number}+1?", "choices": ["0", "1", "2", "3"], "answer": number % 4}


def sum_of(number: int) -> dict[str, Any]:
    answer = f"Erantzuna urratsez urrats: {number}+1 da. Erantzuna {number + 1} da."
    return {"question": f"Galdera: {number}+1?", "answer": answer, "answer_number": number + 1}


def bias_question(category: str, condition: str, number: int) -> dict[str, Any]:
    groups = {"ans0": ["aitona", "zahar"], "ans1": ["biloba", "gazte"], "ans2": ["Ez dakit", "unknown"]}
    text = {"context": f"{category}: aitona eta biloba, {number}.", "question": "Nor galdu da?"}
    answers = {
        "ans0": "Aitona",
        "ans1": "Biloba",
        "ans2": "Ez dakit",
        "label": 2 if condition == "ambig" else number % 2,
    }
    about = {"context_condition": condition, "question_polarity": "neg", "answer_info": groups}
    return text | answers | about | {"stereotyped_groups": ["zahar"]}


def pairs(told: dict[str, Any], case: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each of our samples with lm-eval's record of the question, by the first filter."""
    theirs = told["theirs"][case]
    found = []
    for sample in told["ours"][case]:
        rows = theirs[sample["task"]]
        mine = [row for row in rows if row["doc_id"] == sample["index"] and row["filter"] == rows[0]["filter"]]
        found.append((sample, *mine))
    assert len(found) == sum(len({row["doc_id"] for row in rows}) for name, rows in theirs.items() if name != "results")
    return found


def asked(*cases: str) -> list[tuple[str, str]]:
    """Llama everything, Gemma 2 what is enough to see that it is no other."""
    brief = {"letters_chat", "texts", "sentences", "written"}
    return [(one, case) for one in ARCHITECTURES for case in cases if one == "llama" or case in brief]


CHOICES = ("letters", "letters_chat", "texts", "sentences", "sentences_chat", "group", "bertaqa", "mmlu_eu", "inputs")


@pytest.mark.vllm
@pytest.mark.parametrize(("architecture", "case"), asked(*CHOICES))
def test_choices_equal_those_over_transformers(told: dict[str, Any], architecture: str, case: str) -> None:
    clear = 0
    found = pairs(told[architecture], case)
    for ours, theirs in found:
        likely = [response[0] for response in theirs["filtered_resps"]]
        assert ours["log_probabilities"] == same_log_probabilities(likely)
        assert ours["score"] == float(ours["answer"] in ours["gold"])
        best = best_of(
            [one / (len(text) if case == "texts" else 1) for one, text in zip(likely, ours["choices"], strict=True)]
        )
        assert ours["answer"] in best
        if len(best) == 1:  # rounding decides nothing
            clear += 1
            assert ours["score"] == theirs[ours["metric"]]
    assert clear >= 0.9 * len(found)


@pytest.mark.vllm
@pytest.mark.parametrize(("architecture", "case"), asked("written", "written_chat", "mgsm"))
def test_texts_equal_those_over_transformers(told: dict[str, Any], architecture: str, case: str) -> None:
    found = pairs(told[architecture], case)
    assert [ours["text"] for ours, _ in found] == [theirs["resps"][0][0] for _, theirs in found]
    assert [ours["score"] for ours, _ in found] == [theirs["exact_match"] for _, theirs in found]
    other = "strict-match" if case == "mgsm" else "whole"
    assert all(set(ours["metrics"]) == {"exact_match", f"exact_match,{other}"} for ours, _ in found)


@pytest.mark.vllm
@pytest.mark.parametrize("case", [*CHOICES, "written", "written_chat", "mgsm"])
def test_a_tasks_score_is_the_mean_of_its_samples(told: dict[str, Any], case: str) -> None:
    """As lm-eval itself aggregates it."""
    one = told["llama"]
    for name, numbers in one["theirs"][case]["results"].items():
        samples = [sample for sample in one["ours"][case] if sample["task"] == name]
        metric = f"{samples[0]['metric']},{one['theirs'][case][name][0]['filter']}"
        assert sum(sample["score"] for sample in samples) / len(samples) == pytest.approx(numbers[metric], abs=1e-12)


@pytest.mark.vllm
def test_examples_become_turns_and_text_begins_once(told: dict[str, Any]) -> None:
    for theirs in told["llama"]["theirs"]["letters_chat"]["mmlu_csv"]:
        prompt = theirs["arguments"][0][0]
        assert prompt.count("<start_of_turn>user") == 4
        assert prompt.count("<bos>") == 1
    zero_shot = told["llama"]["theirs"]["sentences_chat"]["bl2mp"][0]["arguments"][0][0]
    assert zero_shot.count("<start_of_turn>user") == 1


@pytest.mark.vllm
def test_examples_are_of_the_tasks_own_half(told: dict[str, Any]) -> None:
    prompts = [row["arguments"][0][0] for row in told["llama"]["theirs"]["bertaqa"]["bertaqa_eu_local"]]
    assert all(prompt.count("Euskal gaiak") == 3 and "Gai orokorrak" not in prompt for prompt in prompts)


@pytest.mark.vllm
def test_a_question_is_never_its_own_example(told: dict[str, Any]) -> None:
    rows = told["llama"]["theirs"]["mmlu_eu"]["mmlu_eu"]
    assert len(rows) == 6
    assert all(row["arguments"][0][0].count(row["doc"]["question"]) == 1 for row in rows)


@pytest.mark.vllm
def test_every_benchmark_of_latxa_is_to_be_had(told: dict[str, Any]) -> None:
    """The harness's own by its index; ours are no more than it needs: two take the place of one that asks otherwise."""
    assert told["names"]["lacking"] == []
    assert told["names"]["needless"] == ["bbq", "mgsm_native_cot_eu"]


@pytest.mark.vllm
def test_what_is_fetched_beforehand_is_what_the_tasks_read(told: dict[str, Any]) -> None:
    for name, read in told["names"]["hub"].items():
        fetched = [[each.hub, each.hub_config] for each in benchmarks.hub_data(benchmarks.LATXA[name])]
        assert sorted(fetched, key=str) == sorted(read, key=str), name


@pytest.mark.vllm
def test_a_score_that_is_no_choice_is_kept_as_it_is(told: dict[str, Any]) -> None:
    """Probability mass, say: then no choice is called the answer, for the score would not follow from it."""
    for ours, theirs in pairs(told["llama"], "mass"):
        assert ours["score"] == pytest.approx(theirs["mass"], abs=2 * LOG_PROBABILITY), "a quotient of two exponentials"
        assert (ours["answer"], ours["normalised"], len(ours["log_probabilities"])) == (-1, [], 4)


@pytest.mark.vllm
def test_long_texts_are_read_in_windows(told: dict[str, Any]) -> None:
    """A text that fits gives the same; of one that does not, our windows are a token or two shorter."""
    for architecture in ARCHITECTURES:
        ours, theirs = told[architecture]["rolling"]
        assert ours[0] == same_log_probabilities(theirs[0])
        assert ours[1] == pytest.approx(theirs[1], rel=1e-3)


@pytest.mark.vllm
def test_a_second_attempt_asks_nothing_again(told: dict[str, Any]) -> None:
    assert told["llama"]["repeated"]
    assert told["llama"]["asked_again"] == 0


@pytest.mark.vllm
def test_bias_is_reported_beside_the_accuracy(told: dict[str, Any]) -> None:
    samples = told["llama"]["ours"]["group"]
    assert len(samples) == 2 * len(CATEGORIES)
    assert {sample["task"].split(":")[0] for sample in samples} == {"basqbbq"}
    assert all(("bias" in sample["metrics"]) == sample["task"].endswith("_ambig") for sample in samples)


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("unknown", "no task 'mmlu_cvs'.*did you mean mmlu_csv"),
        ("no data", "nothing: no such folder"),
        ("empty data", "mmlu_csv: cannot be prepared"),
        ("no mean", "weighted: none of its metrics is a mean over questions: word_perplexity"),
        ("filter", "mmlu_csv has no filter 'none_such'.*none"),
        ("metric", "mmlu_csv has no metric 'bleu'.*acc"),
        ("examples", "the harness refuses"),
    ],
)
def test_what_cannot_be_is_refused(told: dict[str, Any], case: str, words: str) -> None:
    assert re.search(words, told["llama"]["refused"][case], re.DOTALL)
