"""What holds on a quiet machine holds on a slow or busy one: hypothesis sets no deadline for an
example.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")
