"""What every trainer of a recommender does beside TRL: it ranks a validation sample, and writes recommenders."""

import time
from collections.abc import Callable

from transformers import Trainer

from llmrec.training.evaluator import ValidationSample


class RecommenderTrainer:
    """Stands before a trainer of TRL among the bases of a class, which sets the attributes.

    Attributes:
        sample (`ValidationSample` or `None`): what `rank` ranks.
        write_sidecars (callable or `None`): called with every folder that receives weights, so that each checkpoint
            is a recommender.
    """

    sample: ValidationSample | None = None
    write_sidecars: Callable[[str], None] | None = None

    def rank(self, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The metrics of the model as it is on the validation sample and the seconds that they took, logged."""
        start = time.perf_counter()
        found = self.sample.evaluate(self.model, self.accelerator) | {"ranking_seconds": time.perf_counter() - start}
        found = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        Trainer.log(self, found)  # TRL's own would add the training figures since its last time, and forget them
        return found

    def create_model_card(self, *args, **kwargs) -> None:
        """The recipe writes the card (`llmrec.models.card`); TRL's would replace it."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the weights and what makes the folder a recommender."""
        super().save_model(output_dir, _internal_call)
        if self.write_sidecars is not None and self.args.should_save:
            self.write_sidecars(output_dir or self.args.output_dir)
