"""Which rows a step reads follows from the seed and the epoch, and from nothing that a run has drawn meanwhile."""

import pytest
import torch
from small_runs import base_folder, make_trainer, settings


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("order"), attention_dropout=0.3)


def read_by(base, folder, strategy: str, resume: str | None = None, draws: int = 0) -> list[list[list[int]]]:
    """The tokens of the rows of every step; the run draws `draws` numbers from torch's generator between them."""
    fields = {"max_steps": 32, "save_strategy": "steps", "save_steps": 9, "train_sampling_strategy": strategy}
    trainer = make_trainer(base, settings(folder, **fields))
    assert len(trainer.train_dataset) == 40  # 10 steps an epoch
    steps, collate = [], trainer.data_collator

    def remember(examples):
        torch.rand(draws)
        steps.append([example["input_ids"] for example in examples])
        return collate(examples)

    trainer.data_collator = remember
    trainer.train(resume_from_checkpoint=resume)
    return steps


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_a_run_that_goes_on_within_an_epoch_reads_what_the_whole_one_reads(base, tmp_path, strategy):
    whole = read_by(base, tmp_path / "run", strategy)
    epochs = [sorted(row for step in whole[n : n + 10] for row in step) for n in (0, 10, 20)]
    assert epochs[0] == epochs[1] == epochs[2] and whole[:10] != whole[10:20]
    assert read_by(base, tmp_path / "run", strategy, resume=str(tmp_path / "run" / "checkpoint-27")) == whole[27:]


def test_rows_of_a_step_do_not_follow_from_what_a_process_has_drawn(base, tmp_path):
    runs = [read_by(base, tmp_path / str(draws), "group_by_length", draws=draws) for draws in (0, 1)]
    assert runs[0] == runs[1]
