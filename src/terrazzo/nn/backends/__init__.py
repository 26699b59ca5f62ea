"""Ways to run attention over a packed batch; each has `plan` and `attend`."""

from terrazzo.nn.backends.choice import BACKENDS, Backend, ExplicitBackend, default_backend

__all__ = ["BACKENDS", "Backend", "ExplicitBackend", "default_backend"]
