"""The verbs of `%kd`, by kind; importing the package declares them all."""

from kdkit.notebook.verbs import comparison, help, plugins, session, versions, views

__all__ = ["comparison", "help", "plugins", "session", "versions", "views"]
