"""What several test modules share: tiny models, foreign files, references."""

import pkgutil

import pytest

# A failing assert of a helper shows its values, too.
pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))
