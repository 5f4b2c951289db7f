"""The one order of arguments: the model, then the key, then the data."""

import warnings
from typing import Any


def model_first(model: Any, key: Any, kind: type, task: str) -> tuple[Any, Any]:
    """Return model and key, in whichever order they came; warn of the other one.

    `task` is the name of the public function, whose caller the warning points to.
    """
    if isinstance(model, kind) or not isinstance(key, kind):
        return model, key
    warnings.warn(
        f"{task} takes (model, key, ...): the key before the model is deprecated.",
        DeprecationWarning,
        stacklevel=3,
    )
    return key, model
