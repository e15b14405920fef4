"""How generated examples are drawn.

The same ones in every run, so that a failure belongs to a change and not to luck;
``STILLPET_EXAMPLES=explore`` draws new ones, and more of them.
"""

import os

from hypothesis import settings

# No deadline: the first call compiles kernels.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("STILLPET_EXAMPLES", "same"))
