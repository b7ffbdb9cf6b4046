"""One of several ranks: run the configurations of a file one after the other."""

import json
import os
import sys
from pathlib import Path

import glm_lightning
from glm_lightning.training.run import CHILD_RUN_DIR

if __name__ == "__main__":
    for overrides in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        os.environ.pop(CHILD_RUN_DIR, None)  # each run has a folder of its own
        glm_lightning.train(overrides)
