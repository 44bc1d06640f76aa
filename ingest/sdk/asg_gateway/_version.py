"""The version that the User-Agent tells."""

from importlib.metadata import version

__version__ = version("asg-gateway")
