"""DDP sends the gradients of what is trained, once an optimizer step, and nothing else."""

from test_sharded import counts

KNOBS = ("trainer=ddp_cpu", "trainer.accumulate_grad_batches=2", "trainer.max_steps=3")


def test_frozen_weights_cost_no_communication(in_two_processes):
    runs = in_two_processes({"lora": KNOBS, "full": ["method=full", *KNOBS]})
    for run in runs.values():
        trained = run.read_report()["trained_parameters"]
        for rank in (0, 1):
            seen = counts(run, rank)
            assert seen["at_start"] == trained
            assert sum(seen["buckets"]) == 3 * trained
    assert counts(runs["lora"], 0)["whole"] > 5 * runs["lora"].read_report()["trained_parameters"]
