"""The version, as in the User-Agent."""

from importlib.metadata import version

__version__ = version("asg-gateway")
