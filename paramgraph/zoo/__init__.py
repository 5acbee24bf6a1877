"""Stage "zoo": builds, stores and opens sets of trained networks.

Takes: images and architectures. Gives: a folder of weights and a :class:`Zoo` that reads it.

Promises: a finished zoo has every weight it lists; a killed build continues and ends in the same
bytes as an uninterrupted one (same machine and versions); all checkpoints of a parent (an image, a
training run) are in one split; reading runs no code from the folder.

Does not do: graphs or symmetries of the networks; downloads; scheduling over machines.
"""

from paramgraph.zoo.architectures import (
    CNN,
    Architecture,
    Siren,
    architecture_from_json,
    architecture_to_json,
)
from paramgraph.zoo.classifiers import sample_architectures, train_classifiers
from paramgraph.zoo.format import Zoo
from paramgraph.zoo.images import Images, load_images
from paramgraph.zoo.inrs import fit_inrs, image_points
from paramgraph.zoo.recipes import digits_cnn_recipe, digits_inr_recipe

__all__ = [
    "CNN",
    "Architecture",
    "Images",
    "Siren",
    "Zoo",
    "architecture_from_json",
    "architecture_to_json",
    "digits_cnn_recipe",
    "digits_inr_recipe",
    "fit_inrs",
    "image_points",
    "load_images",
    "sample_architectures",
    "train_classifiers",
]
