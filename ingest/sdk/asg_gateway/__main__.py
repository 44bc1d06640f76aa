"""`python -m asg_gateway` runs `asg-submit`."""

from asg_gateway._bulk.command import entry_point

if __name__ == "__main__":
    entry_point()
