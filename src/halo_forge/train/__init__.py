"""From prepared examples to trained weights: batches, attention, loss, step, checkpoint, loop."""

from halo_forge.train.methods import check_method
from halo_forge.train.session import step_counts
from halo_forge.train.train import finished_training, train

__all__ = ["check_method", "finished_training", "step_counts", "train"]
