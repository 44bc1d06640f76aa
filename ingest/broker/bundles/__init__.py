"""A broker that carries several submissions in one message (`domain.bundles`), without its users knowing.

- ``broker``        decorates the broker of a process.
- ``publisher``     packs the messages of one call.
- ``consumer``      unpacks them, and takes a bundle apart if one of its submissions has trouble.
- ``dead_letters``  shows the submissions of bundles that the broker has dead-lettered.
"""
