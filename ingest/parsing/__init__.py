"""Parses bodies without holding the event loop: small ones at once, large ones in a child process.

- ``parser``    decides where a body is parsed.
- ``serial``    runs one item at a time; customers get equal shares of the time.
- ``process``   starts, watches and stops the child process.
- ``child``     what runs in it.
- ``messages``  what the two processes say to each other.

Nothing is imported here: the child process imports as little as possible.
"""
