"""Packs several submissions into one message (`domain.bundles`). Callers see single submissions.

- ``broker``        decorates the broker of a process.
- ``publisher``     packs the messages of one call.
- ``consumer``      unpacks bundles, separates returned submissions, and takes apart a bundle that was returned twice.
- ``dead_letters``  shows the submissions of bundles that the broker has dead-lettered.
"""
