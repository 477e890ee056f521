"""The Circuits page and its parts."""

from dashboard.views.circuits.page import page

__all__ = ["page"]
