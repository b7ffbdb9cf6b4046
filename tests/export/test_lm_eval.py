"""lm-evaluation-harness takes an exported folder as it is. Runs where its package is installed."""

import importlib.util
import json
import subprocess
import sys

import pytest

from glm_lightning.export import export_model

TASK = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs: pip install lm_eval")
def test_a_local_task_is_scored(train, tmp_path):
    run = train("run", "trainer.max_steps=1")
    folder = tmp_path / "out"
    export_model(str(run.path), folder)
    rows = tmp_path / "rows.jsonl"
    asked = [
        {"question": f"the quick brown {x}", "choices": ["fox", "dog"], "answer": 0} for x in ("", "and ", "lazy ")
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "colours.yaml").write_text(TASK.format(rows=rows), encoding="utf-8")
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={folder},dtype=float32"]
    options = ["--device", "cpu", "--tasks", "colours", "--include_path", tmp_path / "tasks", "--output_path", tmp_path]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (written,) = tmp_path.rglob("results_*.json")
    score = json.loads(written.read_text(encoding="utf-8"))["results"]["colours"]["acc,none"]
    assert 0 <= score <= 1
