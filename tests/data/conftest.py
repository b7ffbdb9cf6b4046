from __future__ import annotations

from pathlib import Path

import pytest
from kitchen import Kitchen

from glm_lightning.tokenizers import Tokenizer


@pytest.fixture
def kitchen(tmp_path: Path, glm4_tokenizer: Tokenizer) -> Kitchen:
    return Kitchen(tmp_path, glm4_tokenizer)
