"""In the work environment: finish a run, then what transformers says of some tokens."""

import json
import sys
from pathlib import Path

from hala_hpc.config.imports import heavy_imports
from hala_hpc.worker.job import work_until

with heavy_imports():
    import torch
    from transformers import AutoModelForCausalLM

run, model, texts, out = map(Path, sys.argv[1:])
print(work_until(run, lambda: False))
loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
found = {}
for name, ids in json.loads(texts.read_text()).items():
    with torch.no_grad():
        logs = loaded(torch.tensor([ids])).logits[0].log_softmax(-1)
    found[name] = [float(logs[at, token]) for at, token in enumerate(ids[1:])]
out.write_text(json.dumps(found))
