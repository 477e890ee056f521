"""The Feature page and its tabs."""

from dashboard.views.feature.page import page

__all__ = ["page"]
