"""One of several ranks: run the configurations of a file one after the other."""

import json
import sys
from pathlib import Path

import glm_lightning

if __name__ == "__main__":
    for overrides in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        glm_lightning.train(overrides)
