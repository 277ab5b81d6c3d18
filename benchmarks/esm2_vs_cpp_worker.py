"""Run ESM-2 by esm-cpp, a pass for each line on standard input; needs esm-cpp and NumPy alone.

    python esm2_vs_cpp_worker.py FOLDER fp32|int8

``FOLDER`` has ``model.safetensors`` with transformers' names, and ``sequences.txt``. The first
answer names the instructions in use; each further one is the CPU time of a pass in seconds. The
logits of the residues of all sequences are written once.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import esm_cpp
import numpy as np


def main(folder: Path, precision: str) -> None:
    """Load the model, answer once, then once per line."""
    model = esm_cpp.Model.load_from_safetensors(str(folder / "model.safetensors"))
    tokenizer = esm_cpp.Tokenizer()
    texts = (folder / "sequences.txt").read_text().split()
    tokens = [np.asarray(tokenizer.encode(text), dtype=np.int32) for text in texts]
    if precision == "int8":
        model.quantize_weights()
    logits = model.forward_batch(tokens)
    residues = np.concatenate([np.asarray(one).reshape(len(t), -1)[1:-1]
                               for one, t in zip(logits, tokens, strict=True)])  # fmt: skip
    np.save(folder / f"esm_cpp_{precision}.npy", residues)
    print(
        json.dumps({"about": f"esm-cpp {esm_cpp.__version__}, {esm_cpp.current_isa()}"}), flush=True
    )
    for _ in sys.stdin:
        start = time.process_time()
        model.forward_batch(tokens)
        print(json.dumps({"cpu": time.process_time() - start}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
