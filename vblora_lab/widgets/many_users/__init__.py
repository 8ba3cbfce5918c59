"""ManyUsers: what an adapter for each of N users costs to store, by method. Start with `widget`."""

from vblora_lab.widgets.many_users.widget import ManyUsers

__all__ = ["ManyUsers"]
