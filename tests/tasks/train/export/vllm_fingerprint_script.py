"""Runs in the serve environment: the fingerprint of a model folder as vLLM sees it, written as JSON."""

import json
import sys
from pathlib import Path


def main() -> None:
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    from hala_hpc.tasks.train.export import model

    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    ids = model.prompt_ids(tokenizer)
    llm = LLM(sys.argv[1], dtype="float32", max_model_len=256, enforce_eager=True, disable_log_stats=True)
    (output,) = llm.generate({"prompt_token_ids": ids}, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    found = [place[token].logprob for place, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
