"""`python -m asg_gateway` runs `asg-submit`."""

import sys

from asg_gateway._bulk.command import main

if __name__ == "__main__":
    sys.exit(main())
