"""The views that a self-supervised method compares."""

from fastres import recipe
from fastres.augment import Augment
from fastres.augment.views import Kind, Views
from fastres.recipe.recipe import Recipe


def views_of(options: Recipe, augment: Augment, images: int) -> Views | None:
    """The views that the recipe's method compares, `augment` being its own policy; None for methods with labels."""
    method = options.method
    if isinstance(method, recipe.EmpSslConfig):
        return Views([Kind(augment, method.patches)], images)
    if not isinstance(method, recipe.DinoConfig):
        return None
    kinds = [Kind(augment, 2)]
    if method.local_views:
        policy = options.augment.model_copy(update={"random_resized_crop": method.local_crop})
        kinds.append(Kind(augment.with_policy(policy), method.local_views))
    return Views(kinds, images)
