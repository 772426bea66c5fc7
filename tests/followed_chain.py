"""`facegen kernel run` with little patience, in a process of its own: python followed_chain.py FOLDER."""

import sys
from pathlib import Path

from facegen_keras.kaggle.chain import run_chain
from facegen_keras.kaggle.service import Kaggle

if __name__ == "__main__":
    Kaggle.WAITS = 0.1, 0.2, 0.4
    print("begun", flush=True)
    run_chain(Path(sys.argv[1]), {}, Kaggle(), lambda line: print(line, flush=True), every=0.05, patience=1)
